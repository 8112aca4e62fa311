-- Counts what was admitted elsewhere.
--
-- KEYS  the index of counters; then each counter
-- ARGV  for each counter: its window, its label, and the log as JSON, its times relative to now

local now = clock()
local logs = read(2)
for at = 1, #KEYS - 1 do
  local window, label, log = tonumber(ARGV[3 * at - 2]), ARGV[3 * at - 1], cjson.decode(ARGV[3 * at])
  local entries = {}
  for part = 2, #log, 2 do
    entries[#entries + 1] = {log[part] + now, log[part + 1]}
  end
  local merged = merge(logs[at], entries, window)
  if merged and merged[NEWEST] + window > now then
    name(KEYS[1], KEYS[1 + at], label)
    write(KEYS[1 + at], merged, window, now)
  end
end
return text(now)
