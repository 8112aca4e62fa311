-- Frees the places of calls that have ended, and counts those that failed.
--
-- KEYS  the index of counters; the counter of each place; the counter of each error
-- ARGV  1: the deadline in this server's time, and the number of places
--       then the id of the call that has each place; then for each error the limit's n, the window, and the counter's label
-- Returns the time. Unless the deadline has passed, also for each place 1, or 0 if the call no longer had it; and for each
-- error the counter's new value.

local deadline, places = struct.unpack('<i8i8', ARGV[1])
if now > deadline then
  return {now}
end
local reply = {now}
for at = 1, places do
  reply[1 + at] = redis.call('ZREM', KEYS[1 + at], ARGV[1 + at])
end
for at = 2 + places, #KEYS do
  local first = 2 + places + 3 * (at - 2 - places)
  local n, window = tonumber(ARGV[first]), tonumber(ARGV[first + 1])
  local value = redis.call('GET', KEYS[at])
  local log = value and unpack_log(value) or nil
  local at_us = log and math.max(now, log[NEWEST]) or now -- as limiter/sliding.fail
  local horizon, cost = at_us - window, 1
  -- INSERT live.lua
  -- INSERT count.lua
  reply[at] = write(KEYS[at], log, window)
  if not value then
    redis.call('HSET', KEYS[1], string.match(KEYS[at], '%d+$'), ARGV[first + 2])
  end
end
return reply
