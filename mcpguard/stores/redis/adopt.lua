-- Counts calls that were admitted without this server. Counts each write-back id once.
--
-- KEYS  the key of the write-back id, which exists if these calls were counted before; the index of counters; each counter
-- ARGV  for each counter its window, its label, and the log as JSON, with times relative to now

local KNOWN_MS = 7 * 86400 * 1000 -- how long the first key exists

local now = clock()
if redis.call('EXISTS', KEYS[1]) == 1 then
  return text(now)
end
local logs = read(3)
for at = 1, #KEYS - 2 do
  local window, label, log = tonumber(ARGV[3 * at - 2]), ARGV[3 * at - 1], cjson.decode(ARGV[3 * at])
  local entries = {}
  for part = 2, #log, 2 do
    entries[#entries + 1] = {log[part] + now, log[part + 1]}
  end
  local merged = merge(logs[at], entries, window)
  if merged and merged[NEWEST] + window > now then
    add_to_index(KEYS[2], KEYS[2 + at], label)
    write(KEYS[2 + at], merged, window, now)
  end
end
redis.call('SET', KEYS[1], 1, 'PX', text(KNOWN_MS))
return text(now)
