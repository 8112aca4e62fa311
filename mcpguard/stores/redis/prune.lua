-- Deletes some audit rows that are too old, or for which there is no room.
--
-- KEYS  those of `audit.lua`
-- ARGV  1: the bound of the audit log in bytes, and how many milliseconds rows are kept
-- Returns the number of deleted rows; 0 if no more have to be deleted.

local AT_ONCE, BYTES_AT_ONCE = 200, 1048576 -- a millisecond or two of work: calls wait for it

local max_bytes, keep_ms = struct.unpack('<i8i8', ARGV[1])
local before_ms = now / 1000 - keep_ms
local oldest, drop, drop_one = evicting()
read_audit(redis.call('GET', KEYS[4]))

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
  local bytes = drop_too_old() or drop_one(max_bytes, MAIN, 0)
  if not bytes then
    break
  end
  freed, dropped = freed + bytes, dropped + 1
end
write_audit()
return dropped
