-- Joins outcomes to their rows. The first outcome of a row stays. An outcome of a row that was deleted is ignored, because nothing
-- would delete the outcome.
--
-- KEYS  the stream of the rows; the outcomes, a hash by stream id
-- ARGV  for each outcome the stream id of its row, and its text: a thousand outcomes at most
--
-- Two commands for all outcomes, because each command costs the server more than another member of one.

local function parts(id)
  local ms, number = string.match(id, '(%d+)-(%d+)')
  return tonumber(ms), tonumber(number)
end

local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
local oldest_ms, oldest_number = parts(oldest and oldest[1] or '9007199254740991-0')
local ids, texts = {}, {}
for at = 1, #ARGV - 1, 2 do
  local id = ARGV[at]
  local ms, number = parts(id)
  if not texts[id] and (ms > oldest_ms or (ms == oldest_ms and number >= oldest_number)) then
    ids[#ids + 1], texts[id] = id, ARGV[at + 1]
  end
end
if #ids == 0 then
  return false
end
local known, new = redis.call('HMGET', KEYS[2], unpack(ids)), {}
for at, id in ipairs(ids) do
  if not known[at] then
    new[#new + 1], new[#new + 2] = id, texts[id]
  end
end
if #new > 0 then
  redis.call('HSET', KEYS[2], unpack(new))
end
return false
