-- Gives places to calls in flight, whether there is room or not.
--
-- KEYS  the index of counters; the counter of each place
-- ARGV  for each place the counter's label, and the call's id

for at = 2, #KEYS do
  redis.call('HSET', KEYS[1], string.match(KEYS[at], '%d+$'), ARGV[2 * at - 3])
  give_places(KEYS[at], {ARGV[2 * at - 2]})
end
return now
