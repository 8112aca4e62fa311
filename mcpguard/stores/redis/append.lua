-- Writes audit rows that need no decision.
--
-- KEYS  those of `audit.lua`
-- ARGV  1: the bound of the audit log in bytes, and the number of rows that are replaced
--       then the stream and the stream id of each row that is replaced; then of each new row the stream, the lines up to the
--       context, and the rest
-- Returns the stream ids of the new rows.

local max_bytes, replaced = struct.unpack('<i8i8', ARGV[1])
local _, drop = evicting()
read_audit(redis.call('GET', KEYS[4]))
for at = 2, 2 * replaced, 2 do
  local stream = tonumber(ARGV[at])
  local entry = redis.call('XRANGE', KEYS[stream], ARGV[at + 1], ARGV[at + 1])[1]
  if entry then
    drop(stream, entry)
  end
end
local stream_ids = {}
for at = 2 * replaced + 2, #ARGV - 2, 3 do
  stream_ids[#stream_ids + 1] = append(tonumber(ARGV[at]), ARGV[at + 1], ARGV[at + 2], max_bytes)
end
write_audit()
return stream_ids
