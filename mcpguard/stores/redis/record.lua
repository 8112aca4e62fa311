-- Joins outcomes to their rows: the first one of each stands. A row that was dropped gets none, since nothing would drop that.
--
-- KEYS  the stream of the rows; how calls ended, by the id of their row
-- ARGV  of each outcome its row's id, and its text

local function parts(id)
  local ms, number = string.match(id, '(%d+)-(%d+)')
  return tonumber(ms), tonumber(number)
end

local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
local oldest_ms, oldest_number = parts(oldest and oldest[1] or '9007199254740991-0')
for at = 1, #ARGV - 1, 2 do
  local ms, number = parts(ARGV[at])
  if ms > oldest_ms or (ms == oldest_ms and number >= oldest_number) then
    redis.call('HSETNX', KEYS[2], ARGV[at], ARGV[at + 1])
  end
end
return false
