-- Places of calls in flight. A counter of calls in flight is a sorted set of the calls' ids, by the time at which their leases end.
-- The id of a call is that of its row, or a negative number: see `Recoverable.give_places`.
--
-- A place whose lease has ended is free, but its id stays until another call gets a place. Until then the lease can be renewed.

local KEPT_MS = 3600000 -- how long a set is kept after its last use: longer than any lease

-- Gives places to calls with these ids
local function give_places(key, ids)
  for _, id in ipairs(ids) do
    redis.call('ZADD', key, now + LEASE_US, id)
  end
  redis.call('PEXPIRE', key, KEPT_MS)
end
