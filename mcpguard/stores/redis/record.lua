-- Joins outcomes to their rows. The first outcome of a row stays. An outcome of a row that was deleted is ignored, because nothing
-- would delete the outcome.
--
-- KEYS  the stream of the rows; the outcomes, a hash by stream id
-- ARGV  for each outcome the stream id of its row, and its text

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
