-- Drops some of the audit's rows that are too old or too much.
--
-- KEYS  as `audit.lua` has them
-- ARGV  how much memory the audit may take, and for how many milliseconds rows are kept
-- Returns how many it has dropped; none if no more have to go.

local AT_ONCE, BYTES_AT_ONCE = 200, 1048576 -- a millisecond or two: calls wait meanwhile

local most, keep_ms = struct.unpack('<i8i8', ARGV[1])
local before_ms = clock() / 1000 - keep_ms
read_audit()

local function drop_too_old()
  for _, stream in ipairs({MAIN, REFUSALS}) do
    local entry = oldest(stream)
    if not entry then
      held_bytes[stream] = 0
    elseif tonumber(string.match(entry[1], '%d+')) < before_ms then
      return drop(stream, entry)
    end
  end
end

local freed, dropped = 0, 0
while freed < BYTES_AT_ONCE and dropped < AT_ONCE do
  local bytes = drop_too_old() or drop_one(most, MAIN, 0)
  if not bytes then
    break
  end
  freed, dropped = freed + bytes, dropped + 1
end
write_audit()
return dropped
