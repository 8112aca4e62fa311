-- Counts calls that were admitted without this server. Counts each write-back id once.
--
-- KEYS  the key of the write-back id, which exists if these calls were counted before; the index of counters; each counter
-- ARGV  for each counter its window, its label, and the log as JSON, with times relative to now

local KNOWN_MS = 7 * 86400 * 1000 -- how long the first key exists

if redis.call('EXISTS', KEYS[1]) == 1 then
  return now
end
local values = read(3, #KEYS)
for at = 1, #KEYS - 2 do
  local window, label, adopted = tonumber(ARGV[3 * at - 2]), ARGV[3 * at - 1], cjson.decode(ARGV[3 * at])
  local entries = {}
  for part = 2, #adopted, 2 do
    entries[#entries + 1] = {adopted[part] + now, math.min(adopted[part + 1], MAX_COST)}
  end
  local log, horizon = values[at] and unpack_log(values[at]) or nil, now - window
  -- INSERT live.lua
  local merged = merge(log, entries, window)
  if merged and merged[NEWEST] + window > now then
    redis.call('HSET', KEYS[2], string.match(KEYS[2 + at], '%d+$'), label)
    write(KEYS[2 + at], merged, window)
  end
end
redis.call('SET', KEYS[1], 1, 'PX', KNOWN_MS)
return now
