-- Decides requests in order, charges their counters and writes the audit rows of those that are forwarded.
--
-- KEYS  those of `audit.lua`; each counter, see `log.lua` and `places.lua`; the index of counters
-- ARGV  1: the labels of the counters, a NUL after each
--       then the limits of each request
--       then, packed: the deadline in this server's time, the number of the session's newest row, the bound of the audit log in
--       bytes, and whether this may be a usual call. In the same argument follow texts with a NUL after each: the session's
--       denials on each counter since its last admission, with commas, or nothing; then for each request
--         - `?` if it may be held without room, then the decision if it is admitted and that is not `allowed`: `continued`, or `held`,
--           which charges nothing
--         - the detail of its row
--       then of each request the lines of its row up to the context
-- Returns the time. Unless the deadline has passed, also the value of each counter, and for each request a table:
--         - the stream id of its row if it is forwarded, and the decision
--         - the index of the reported limit (0: none), what that limit's counter holds, and the wait
--         - the limits without room: their indexes and waits
--         - the number of calls in flight, if there is a cap on them
--         - the limits of which the call warns: their indexes, and the sums in their counters
--       For a usual call this is packed: see `usual.lua`. Only if a call may be held, the value of a counter of calls in flight is not nil, but a table with their ids.
--
-- Every call waits for this script. The expensive parts are commands, numbers as text, texts (each byte of a new one is hashed),
-- tables that grow, and functions, which are made anew in each run: {nil, nil, nil, nil} reserves room for four.

local TEXTS = 'ss'
-- n, window (0: calls in flight), index of the counter (0: none), rule, rank, where the fragment begins and ends, what the call takes,
-- the sum at which a call warns, and the index of the mark (0: none). The rank is 2 if the limit is observed, and 1
-- more if it counts errors or calls in flight. The fragments are after all limits
local LIMIT = '<i8i8I4I4I4I4I4i8i8I4'
local N, WINDOW, COUNTER, RULE, RANK, FIRST, LAST, UNITS, WARN_AT, MARK = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10
local OBSERVED = 2 -- the least rank of an observed limit
local NOTHING = {}

reply = reply or read(4, 4 + counters)
read_audit(reply[1])
reply[1] = now
local logs = {nil, nil, nil, nil}
for counter = 1, counters do
  logs[counter] = reply[1 + counter] and unpack_log(reply[1 + counter]) or nil
end
local charged = {nil, nil, nil, nil} -- windows of the counters that were charged, by index
local denied -- the session's denials since its last admission, by index of the counter
local plans -- limits by their text
local in_flight, places -- by index of the counter: how many calls are in flight, and the ids of the calls that got a place
local has_written, may_hold = false, false -- whether a row was written, and whether a call may be held
local denials
denials, texts_from = struct.unpack('s', ARGV[2 + requests], texts_from)
for count in string.gmatch(denials, '%d+') do
  denied = denied or {}
  denied[#denied + 1] = tonumber(count)
end

for request = 1, requests do
  local packed, choices, detail = ARGV[1 + request]
  choices, detail, texts_from = struct.unpack(TEXTS, ARGV[2 + requests], texts_from)
  local reported, count, held_by_reported, remaining, wait, exceeded = 0, false, false, false, false, NOTHING
  local flying, taken, warned, warnings = false, nil, NOTHING, nil
  local limits = plans and plans[packed]
  if not limits then
    limits = {nil, nil, nil, nil}
    local from, fragments = 1, #packed -- the fragments begin here
    while from < fragments do
      local limit = {struct.unpack(LIMIT, packed, from)}
      fragments, from = math.min(fragments, limit[FIRST]), from + LIMIT_BYTES
      limits[#limits + 1] = limit
      limits.has_cap = limits.has_cap or limit[N] > 0 and limit[WINDOW] == 0
      limits.warns = limits.warns or limit[MARK] > 0
    end
    if requests > 1 then
      plans = plans or {}
      plans[packed] = limits
    end
  end

  -- As limiter/sliding.decide. For the reported limit as session/decision.verdict: of the limits with room the tightest one of the
  -- lowest rank
  local at_us = now
  for at = 1, #limits do
    local log, mark = logs[limits[at][COUNTER]], logs[limits[at][MARK]]
    at_us = math.max(at_us, log and log[NEWEST] or 0, mark and mark[NEWEST] or 0)
  end
  local alive, held, smallest = {nil, nil, nil, nil}, {nil, nil, nil, nil}, {nil, nil, nil, nil}
  local full, is_denied, without_room
  local lowest = 0
  for at = 1, #limits do
    local limit = limits[at]
    local n, counter = limit[N], limit[COUNTER]
    local used = held[counter]
    if n > 0 and not used then
      if limit[WINDOW] > 0 then
        local log, horizon = logs[counter], at_us - limit[WINDOW]
        -- INSERT live.lua
        used = log and log[TOTAL] or 0
        alive[counter] = log
      else
        in_flight = in_flight or {}
        used = in_flight[counter] or redis.call('ZCOUNT', KEYS[4 + counter], string.format('(%.0f', now), '+inf')
        in_flight[counter] = used
      end
      held[counter] = used
    end
    if n == 0 or used + limit[UNITS] > n then
      full = full or {}
      full[#full + 1] = at
    else
      if not smallest[counter] or n < smallest[counter][N] then
        smallest[counter] = limit
      end
      local rank = limit[RANK]
      local sum = used + (rank % 2 == 1 and limit[WINDOW] > 0 and 0 or limit[UNITS]) -- a call takes no error
      if not remaining or rank < lowest or (rank == lowest and n - sum < remaining) then
        reported, held_by_reported, remaining, lowest = at, sum, n - sum, rank
      end
    end
  end
  local decision = 'allowed'
  if full then
    local enforced = {}
    for _, at in ipairs(full) do
      if limits[at][RANK] < OBSERVED then
        enforced[#enforced + 1] = at
      end
    end
    without_room = {}
    local worst = 0
    exceeded, reported = {}, 0
    for _, at in ipairs(#enforced > 0 and enforced or full) do
      local limit = limits[at]
      local n, window, units = limit[N], limit[WINDOW], limit[UNITS]
      local severity, after = n == 0 and 3 or window == 0 and 1 or 2, false -- as session/decision._severity; false: no wait is enough
      if window > 0 and units <= n then -- as limiter/sliding.retry_after
        local log = alive[limit[COUNTER]]
        local over, next_at = log[TOTAL] + units - n, 1
        while over > 0 do
          local time, cost = log[NEWEST], log[COST]
          if next_at <= #log[CLOSED] then
            time, cost = struct.unpack(ENTRY, log[CLOSED], next_at)
          end
          over, after, next_at = over - cost, time + window - at_us, next_at + ENTRY_BYTES
        end
        severity = 0
      end
      exceeded[#exceeded + 1] = {at, after}
      without_room[limit[RULE]] = true
      if reported == 0 or severity > worst or (severity == 0 and worst == 0 and after > wait) then
        reported, worst, wait = at, severity, after
      end
    end
    local n = limits[reported][N]
    held_by_reported = n > 0 and held[limits[reported][COUNTER]]
    remaining = n > 0 and math.max(0, n - held_by_reported)
    smallest = {}
    is_denied = #enforced > 0
    if is_denied then
      decision = n > 0 and 'rate_limited' or 'denied'
    else
      decision = 'would_deny'
      for _, limit in ipairs(limits) do
        local other = smallest[limit[COUNTER]]
        if not without_room[limit[RULE]] and (not other or limit[N] < other[N]) then
          smallest[limit[COUNTER]] = limit
        end
      end
    end
  end

  if limits.has_cap then -- as session/decision._in_flight
    local least
    for at = 1, #limits do
      local n, counter = limits[at][N], limits[at][COUNTER]
      if n > 0 and limits[at][WINDOW] == 0 then
        local total = in_flight[counter] + (smallest[counter] and 1 or 0)
        if not least or n - total < least then
          least, flying = n - total, total
        end
      end
    end
  end
  if choices ~= '' then
    local may_wait, admitted = string.match(choices, '^(%??)(%a*)$')
    if is_denied then
      may_hold = may_hold or may_wait ~= ''
    elseif admitted == 'held' then
      decision, smallest, may_hold = 'held', {}, true
    elseif decision == 'allowed' and admitted ~= '' then
      decision = admitted
    end
  end
  if limits.warns then -- as limiter/sliding._warned
    warned, warnings = {}, {}
    for at, limit in ipairs((is_denied or decision == 'held') and {} or limits) do
      local mark, sum = limit[MARK], (held[limit[COUNTER]] or 0) + (limit[RANK] % 2 == 1 and 0 or limit[UNITS])
      local is_marked = logs[mark] and logs[mark][NEWEST] > at_us - limit[WINDOW]
      if mark > 0 and sum >= limit[WARN_AT] and not (is_marked or without_room and without_room[limit[RULE]]) then
        logs[mark], charged[mark] = {at_us, at_us, 1, 1, ''}, limit[WINDOW]
        warned[#warned + 1] = {at, sum}
        warnings[#warnings + 1] = string.format('%s,"count":%.0f}', string.sub(packed, limit[FIRST], limit[LAST] - 1), sum)
      end
    end
  end
  for counter, limit in pairs(smallest) do
    local window = limit[WINDOW]
    if window == 0 then
      in_flight[counter], taken = in_flight[counter] + 1, taken or {}
      taken[#taken + 1] = counter
    elseif limit[RANK] % 2 == 0 then
      local log, n, cost = alive[counter], limit[N], limit[UNITS]
      -- INSERT count.lua
      logs[counter], charged[counter] = log, window
    end
  end

  -- As session/journal.Journal._count_denials
  count = held_by_reported
  if (full or denied) and decision ~= 'denied' and decision ~= 'held' and decision ~= 'continued' then
    denied = denied or {}
    for counter in pairs(smallest) do
      denied[counter] = 0
    end
    local counted = {}
    for _, one in ipairs(exceeded) do
      local limit = limits[one[1]]
      local counter = limit[COUNTER]
      if limit[N] > 0 and not smallest[counter] and not counted[counter] then
        counted[counter] = true
        denied[counter] = (denied[counter] or 0) + 1
      end
    end
    if full and count then
      count = count + (counted[limits[reported][COUNTER]] and denied[limits[reported][COUNTER]] or 1)
    end
  end

  -- Rows are written before counters: a server that refuses a row must not have counted the call. A row without a charge can be
  -- found and replaced
  local stream_id = false
  if not (is_denied or decision == 'held') then
    local fragment = reported > 0 and string.sub(packed, limits[reported][FIRST], limits[reported][LAST]) or ''
    if flying then
      detail = (detail == '' and '{' or string.sub(detail, 1, -2) .. ',') .. '"in_flight":' .. flying .. '}'
    end
    if #exceeded > 1 then
      local all = {}
      for at, one in ipairs(exceeded) do
        local after = one[2] and ',"retry_after_ms":' .. math.ceil(one[2] / 1000) or ''
        all[at] = string.sub(packed, limits[one[1]][FIRST], limits[one[1]][LAST] - 1) .. after .. '}'
      end
      local before = detail == '' and '{' or string.sub(detail, 1, -2) .. ','
      detail = before .. '"exceeded":[' .. table.concat(all, ',') .. ']}'
    end
    if #warned > 0 then
      local before = detail == '' and '{' or string.sub(detail, 1, -2) .. ','
      detail = before .. '"warned":[' .. table.concat(warnings, ',') .. ']}'
    end
    seq, has_written = seq + 1, true
    stream_id = append(MAIN, ARGV[2 + requests + request], decision .. '\n' .. fragment .. '\n' .. detail .. '\n'
      .. struct.pack(NUMBERS, seq, count or -1, remaining or -1, wait and math.ceil(wait / 1000) or -1, -1), max_bytes)
  end
  if taken then
    places = places or {}
    for _, counter in ipairs(taken) do
      places[counter] = places[counter] or {}
      table.insert(places[counter], stream_id)
    end
  end
  reply[#reply + 1] = {stream_id, decision, reported, held_by_reported, wait, exceeded, flying, warned}
end

if has_written then
  write_audit()
end
local label_from, labelled = 1, 0 -- labels are read up to here, and up to this counter
for counter = 1, counters do
  local ids = places and places[counter]
  if charged[counter] or ids then
    if ids and in_flight[counter] == #ids or not (ids or reply[1 + counter]) then
      local label
      while labelled < counter do
        label, label_from = struct.unpack('s', ARGV[1], label_from)
        labelled = labelled + 1
      end
      redis.call('HSET', KEYS[#KEYS], string.match(KEYS[4 + counter], '%d+$'), label)
    end
    if ids then
      redis.call('ZREMRANGEBYSCORE', KEYS[4 + counter], '-inf', string.format('%.0f', now))
      give_places(KEYS[4 + counter], ids)
    else
      reply[1 + counter] = write(KEYS[4 + counter], logs[counter], charged[counter])
    end
  end
end
if may_hold and in_flight then
  for counter in pairs(in_flight) do
    reply[1 + counter] = redis.call('ZRANGE', KEYS[4 + counter], string.format('(%.0f', now), '+inf', 'BYSCORE')
  end
end
return reply
