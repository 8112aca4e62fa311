-- Writes rows of the audit that no decision is made for.
--
-- KEYS  as `audit.lua` has them
-- ARGV  how much memory the audit may take, and how many rows are replaced; of each of these its stream and its id; then of
--       each new row its stream and its text
-- Returns the new rows' ids.

local most, replaced = struct.unpack('<i8i8', ARGV[1])
local now = clock()
read_audit()
for at = 2, 2 * replaced, 2 do
  local stream = tonumber(ARGV[at])
  local entry = redis.call('XRANGE', KEYS[stream], ARGV[at + 1], ARGV[at + 1])[1]
  if entry then
    drop(stream, entry)
  end
end
local ids = {}
for at = 2 * replaced + 2, #ARGV - 1, 2 do
  ids[#ids + 1] = append(tonumber(ARGV[at]), ARGV[at + 1], now, most)
end
write_audit()
return ids
