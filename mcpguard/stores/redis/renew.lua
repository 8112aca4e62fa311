-- Renews leases of calls in flight.
--
-- KEYS  the counter of each place
-- ARGV  for each place the call's id
-- Returns for each place 1; 0 if the call no longer has it.

local found = {}
for at = 1, #KEYS do
  found[at] = redis.call('ZSCORE', KEYS[at], ARGV[at]) and 1 or 0
  if found[at] == 1 then
    give_places(KEYS[at], {ARGV[at]})
  end
end
return found
