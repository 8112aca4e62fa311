-- Counts what was admitted elsewhere.
--
-- KEYS  what tells that this was counted already; the index of counters; then each counter
-- ARGV  for how long to know that it was, in ms (0: it is never told again); then for each counter: its window, its label, and
--       the log as JSON, its times relative to now

local now, keep_ms = clock(), tonumber(ARGV[1])
if keep_ms > 0 and redis.call('EXISTS', KEYS[1]) == 1 then
  return text(now)
end
local logs = read(3)
for at = 1, #KEYS - 2 do
  local window, label, log = tonumber(ARGV[3 * at - 1]), ARGV[3 * at], cjson.decode(ARGV[3 * at + 1])
  local entries = {}
  for part = 2, #log, 2 do
    entries[#entries + 1] = {log[part] + now, log[part + 1]}
  end
  local merged = merge(logs[at], entries, window)
  if merged and merged[NEWEST] + window > now then
    name(KEYS[2], KEYS[2 + at], label)
    write(KEYS[2 + at], merged, window, now)
  end
end
if keep_ms > 0 then
  redis.call('SET', KEYS[1], 1, 'PX', keep_ms)
end
return text(now)
