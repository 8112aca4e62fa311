-- Admits requests in order, as long as all limits of each have room: charges the counters and writes the audit rows. At the first
-- request that is not admitted it stops, and the client decides that one from what the counters hold.
--
-- KEYS  those of `audit.lua`; each counter, see `log.lua` and `places.lua`; the index of counters
-- ARGV  1: the labels of the counters, packed
--       then the limits of each request
--       then, packed: the deadline in this server's time, the number of the session's newest row, the bound of the audit log in
--       bytes
--       then of each request
--         - the decision if it is admitted; nothing if it must not be; or the end of its row, which has line breaks
--         - the detail of its row
--         - the beginning of its row
-- Returns the time alone if the deadline has passed. Else a table: the time; the value of each counter; and for each admitted
-- request the stream id of its row, the index of the reported limit (0: none), what that limit's counter holds, and the number of
-- calls in flight, if there is a cap on them. If a request was not admitted, the value of a counter of calls in flight is a table
-- with their ids.
--
-- Every call waits for this script. The expensive parts are commands, numbers as text, tables that grow, and functions, which are
-- made anew in each run: {nil, nil, nil, nil} reserves room for four.

-- n, window (0: calls in flight), grain, what the call takes, index of the counter, rank, and where the fragment begins and ends.
-- The rank is 2 if the limit is observed, and 1 more if it counts errors or calls in flight. The fragments are after all limits
local LIMIT, LIMIT_BYTES = '<i8i8i8I4I4I4I4I4', 44
local N, WINDOW, GRAIN, UNITS, COUNTER, RANK, FIRST, LAST = 1, 2, 3, 4, 5, 6, 7, 8

local requests = math.floor((#ARGV - 2) / 4)
local deadline, seq, max_bytes = struct.unpack('<i8i8i8', ARGV[2 + requests])
if now > deadline then
  return now
end
local counters = #KEYS - 5
local reply = read(4, 4 + counters)
read_audit(reply[1])
reply[1] = now
local logs = {nil, nil, nil, nil}
for counter = 1, counters do
  logs[counter] = reply[1 + counter] and unpack_log(reply[1 + counter]) or nil
end

local labels, labels_from = {}, 1
local function name(counter)
  while #labels < counter do
    labels[#labels + 1], labels_from = struct.unpack('s', ARGV[1], labels_from)
  end
  redis.call('HSET', KEYS[#KEYS], string.match(KEYS[4 + counter], '%d+$'), labels[counter])
end

local admitted = 0
while admitted < requests do
  local packed, word = ARGV[2 + admitted], ARGV[3 * admitted + 3 + requests]
  local limits, at_us = {nil, nil, nil, nil}, now -- as limiter/sliding.decide
  local last = word == '' and 0 or #packed
  for at = 1, last do
    local from = (at - 1) * LIMIT_BYTES + 1
    if from > last then
      break
    end
    local limit = {struct.unpack(LIMIT, packed, from)}
    local log = logs[limit[COUNTER]]
    if log and log[NEWEST] > at_us then
      at_us = log[NEWEST]
    end
    limits[at], last = limit, math.min(last, limit[FIRST] - 1)
  end
  local alive, held = {nil, nil, nil, nil}, {nil, nil, nil, nil} -- logs, and what each counter holds
  local reported, count, remaining, lowest = 0, false, false, 0 -- as session/decision.verdict
  local least, flying
  local has_room = word ~= ''
  for at = 1, has_room and #limits or 0 do
    local limit = limits[at]
    local n, window, counter, rank = limit[N], limit[WINDOW], limit[COUNTER], limit[RANK]
    local used = held[counter] -- by another limit with this counter
    if not used and window == 0 then
      used = redis.call('ZCOUNT', KEYS[4 + counter], string.format('(%.0f', now), '+inf')
    elseif not used then
      local log, horizon = logs[counter], at_us - window
      -- INSERT live.lua
      used, alive[counter] = log and log[TOTAL] or 0, log
    end
    held[counter] = used
    if used + limit[UNITS] > n then
      has_room = false
      break
    end
    local sum = used + (rank % 2 == 1 and window > 0 and 0 or limit[UNITS]) -- a call takes no error
    if not remaining or rank < lowest or (rank == lowest and n - sum < remaining) then
      reported, count, remaining, lowest = at, sum, n - sum, rank
    end
    if window == 0 and (not least or n - sum < least) then
      least, flying = n - sum, sum
    end
  end
  if not has_room then
    break
  end

  -- Rows are written before counters: a server that refuses a row must not have counted the call. A row without a charge can be
  -- found and replaced
  local from = 3 * admitted + 4 + requests
  local detail, row = ARGV[from], word
  if not string.find(word, '\n', 1, true) then
    if flying then
      detail = (detail == '' and '{' or string.sub(detail, 1, -2) .. ',') .. '"in_flight":' .. flying .. '}'
    end
    local fragment = reported > 0 and string.sub(packed, limits[reported][FIRST], limits[reported][LAST]) or ''
    row = word .. '\n' .. fragment .. '\n' .. detail .. '\n'
      .. struct.pack(NUMBERS, seq + 1, count or -1, remaining or -1, -1, -1)
  end
  seq, admitted = seq + 1, admitted + 1
  local stream_id = append(MAIN, ARGV[from + 1], row, max_bytes)
  write_audit()
  for at = 1, #limits do
    local limit = limits[at]
    local window, counter, key = limit[WINDOW], limit[COUNTER], KEYS[4 + limit[COUNTER]]
    local used = held[counter]
    held[counter] = nil
    if used and window == 0 then
      if used == 0 then
        name(counter)
      end
      redis.call('ZREMRANGEBYSCORE', key, '-inf', string.format('%.0f', now))
      give_place(key, stream_id)
    elseif used and limit[RANK] % 2 == 0 then
      local log, grain, cost = alive[counter], limit[GRAIN], limit[UNITS]
      -- INSERT count.lua
      if not reply[1 + counter] then
        name(counter)
      end
      logs[counter], reply[1 + counter] = log, write(key, log, window)
    end
  end
  local slot = #reply
  reply[slot + 1], reply[slot + 2], reply[slot + 3], reply[slot + 4] = stream_id, reported, count, flying or false
end

if admitted < requests then
  for counter = 1, counters do
    if string.find(KEYS[4 + counter], ':in_flight:', 1, true) then
      reply[1 + counter] = redis.call('ZRANGE', KEYS[4 + counter], string.format('(%.0f', now), '+inf', 'BYSCORE')
    end
  end
end
return reply
