-- Decides requests in order, charges their counters and writes their audit rows.
--
-- KEYS  those of `audit.lua`; the index of counters; each counter
-- ARGV  1: the labels of the counters, a NUL after each
--       2: the deadline in this server's time, the number of the session's newest row, the bound of the audit log in bytes
--       3: the session's allowance of rows for denials, as JSON
--       then two for each request. First its limits. Second, a NUL after each: its decision, if it does not depend on limits; what
--       the session's journal remembers, as JSON; of its row the lines before the context, the context, and the detail; and the
--       shorter detail of a denial, if the detail is too long for one
-- Returns the time. Unless the deadline has passed, also the value of each counter, and for each request: the stream id of its row
--       if it has one of its own, the decision, the index of the reported limit (0: none), what that limit's counter holds, the
--       wait, and the number of limits without room, followed by their indexes and waits. All of it is one flat table, because a
--       server spends time on each table of a reply.
--
-- Every call waits for this script. The expensive parts are numbers as text and tables that grow: {nil, nil, nil, nil} reserves
-- room for four.

local PER_CALL = 2
local CALL = 'ssssss'
local NUMBERS = '<i8i8i8i8i8' -- of a row: seq, count, remaining, wait in ms, repeats; -1: none
local LIMIT = '<i8i8I4I4I4s' -- n, window, index of the counter (0: none), rule, whether it is observed, fragment
local REFUSED = {rate_limited = true, denied = true, unauthenticated = true, invalid = true, unavailable = true}
local NOTHING_REMEMBERED = {{}, {}}

local now = clock()
local deadline, seq, max_bytes = struct.unpack('<i8i8i8', ARGV[2])
if now > deadline then
  return {now}
end
local index = KEYS[5]
local logs, values = read(6)
local changed = {nil, nil, nil, nil} -- windows of the counters that were charged, by index
local denied = {} -- the session's denials since its last admission, by index of the counter
local storms = {} -- the keys of denials that have a row
local allowance -- see core/journal.Journal.allowance; decoded when it is needed
local rows = {} -- {stream, text} by the index of their stream id in the reply
local reply = {now, nil, nil, nil, nil, nil, nil, nil, nil, nil}
for at = 1, #values do
  reply[1 + at] = values[at]
end

-- As core/limiter.decide
local function decide(limits)
  local at_us = now
  for at = 1, #limits do
    local log = logs[limits[at][3]]
    if log and log[NEWEST] > at_us then
      at_us = log[NEWEST]
    end
  end
  local alive, held, smallest = {nil, nil, nil, nil}, {nil, nil, nil, nil}, {nil, nil, nil, nil}
  local full, enforced, exceeded = {}, {}, {}
  for at = 1, #limits do
    local limit = limits[at]
    local n, window, counter = limit[1], limit[2], limit[3]
    if n > 0 and not held[counter] then
      alive[counter] = live(logs[counter], window, at_us)
      held[counter] = used(alive[counter])
    end
    if n == 0 or held[counter] + 1 > n then
      full[#full + 1] = at
      if limit[5] == 0 then
        enforced[#enforced + 1] = at
      end
    end
  end
  local without_room = {}
  if #full > 0 then
    for _, at in ipairs(#enforced > 0 and enforced or full) do
      local limit = limits[at]
      exceeded[#exceeded + 1] = {at, retry_after(alive[limit[3]], limit[1], limit[2], at_us) or false}
      without_room[limit[4]] = true
    end
    if #enforced > 0 then
      return false, held, exceeded
    end
  end
  for at = 1, #limits do
    local limit = limits[at]
    local other = smallest[limit[3]]
    if limit[1] > 0 and not without_room[limit[4]] and (not other or limit[1] < other[1]) then
      smallest[limit[3]] = limit
    end
  end
  for counter, limit in pairs(smallest) do
    logs[counter] = charge(alive[counter], limit[1], limit[2], at_us)
    changed[counter] = limit[2]
  end
  return true, held, exceeded
end

-- As core/verdict.verdict. Returns the decision, the index of the reported limit, what its counter holds, remaining, the wait
local function verdict(limits, admitted, held, exceeded)
  if #exceeded == 0 then
    local tightest, remaining, observed = 0, false, 1
    for at = 1, #limits do
      local limit = limits[at]
      local rest = limit[1] - held[limit[3]] - 1
      -- Enforced limits go before observed ones
      if not remaining or limit[5] < observed or (limit[5] == observed and rest < remaining) then
        tightest, remaining, observed = at, rest, limit[5]
      end
    end
    return 'allowed', tightest, tightest > 0 and held[limits[tightest][3]] + 1, remaining, false
  end
  local longest, wait = exceeded[1][1], exceeded[1][2]
  for _, one in ipairs(exceeded) do
    if wait and (not one[2] or one[2] > wait) then
      longest, wait = one[1], one[2]
    end
  end
  local n, count = limits[longest][1], held[limits[longest][3]]
  local decision = admitted and 'would_deny' or wait and 'rate_limited' or 'denied'
  if n == 0 then
    return decision, longest, false, false, wait
  end
  return decision, longest, count, math.max(0, n - count), wait
end

-- As core/journal.Journal. Returns the count with this session's denials on the counter since its last admission
local function with_denials(limits, decision, reported, count, exceeded, remembered)
  if decision == 'rate_limited' then
    local counted = {}
    for _, one in ipairs(exceeded) do
      local counter = limits[one[1]][3]
      if limits[one[1]][1] > 0 and not counted[counter] then
        counted[counter] = true
        denied[counter] = (denied[counter] or remembered[2][one[1]] or 0) + 1
      end
    end
    return count and count + denied[limits[reported][3]]
  end
  if decision ~= 'denied' and (remembered ~= NOTHING_REMEMBERED or next(denied)) then
    for at = 1, #limits do
      denied[limits[at][3]] = 0
    end
  end
  return count
end

-- As core/journal.Journal: whether a decision has its own row. Equal denials share one, and so do those of a kind over budget
local function has_own_row(decision, beginning, context, fragment, detail, is_storm)
  if not REFUSED[decision] then
    return true
  end
  local key = decision .. '\n' .. fragment .. '\n' .. context
  if is_storm or storms[key] then
    return false
  end
  allowance = allowance or cjson.decode(ARGV[3])
  local row_bytes, burst, budgets, summed = unpack(allowance)
  local kind = decision .. ' ' .. (string.match(fragment, '^{"axis":"(%a+)"') or '')
  local request_id = string.match(beginning, '\n([^\n]*)')
  local rest = (budgets[kind] or burst) - row_bytes - #context - #detail - #request_id
  if rest >= 0 then
    budgets[kind], storms[key] = rest, true
    return true
  end
  local is_first = not summed[kind]
  summed[kind] = true
  return is_first
end

local function ms_up(us)
  return math.ceil(us / 1000)
end

local function with_exceeded(detail, limits, exceeded)
  local all = {}
  for at, one in ipairs(exceeded) do
    local wait = one[2] and ',"retry_after_ms":' .. ms_up(one[2]) or ''
    all[at] = string.sub(limits[one[1]][6], 1, -2) .. wait .. '}'
  end
  local before = detail == '' and '{' or string.sub(detail, 1, -2) .. ','
  return before .. '"exceeded":[' .. table.concat(all, ',') .. ']}'
end

local plans = {}

local function limits_of(packed)
  local limits = plans[packed]
  if not limits then
    limits = {}
    local from = 1
    while from <= #packed do
      local limit = {struct.unpack(LIMIT, packed, from)}
      limits[#limits + 1] = limit
      from = limit[7]
    end
    plans[packed] = limits
  end
  return limits
end

for first = 4, #ARGV - PER_CALL + 1, PER_CALL do
  local decision, memory, beginning, context, detail, short = struct.unpack(CALL, ARGV[first + 1])
  local remembered = memory == '' and NOTHING_REMEMBERED or cjson.decode(memory)
  local fragment, is_storm = '', remembered[1][1] == 1
  local reported, held, count, remaining, wait, exceeded = 0, false, false, false, false, {}
  local limits
  if decision == '' then
    limits = limits_of(ARGV[first])
    local admitted, before
    admitted, before, exceeded = decide(limits)
    decision, reported, held, remaining, wait = verdict(limits, admitted, before, exceeded)
    count = with_denials(limits, decision, reported, held, exceeded, remembered)
    if reported > 0 then
      fragment, is_storm = limits[reported][6], remembered[1][reported] == 1
    end
  end
  if short ~= '' and REFUSED[decision] then
    detail = short
  end
  if #exceeded > 1 then
    detail = with_exceeded(detail, limits, exceeded)
  end
  local slot = #reply + 1
  reply[slot], reply[slot + 1], reply[slot + 2] = false, decision, reported
  reply[slot + 3], reply[slot + 4], reply[slot + 5] = held, wait, #exceeded
  for at, one in ipairs(exceeded) do
    reply[slot + 4 + 2 * at], reply[slot + 5 + 2 * at] = one[1], one[2]
  end
  if has_own_row(decision, beginning, context, fragment, detail, is_storm) then
    seq = seq + 1
    local row = beginning .. '\n' .. context .. '\n' .. decision .. '\n' .. fragment .. '\n' .. detail .. '\n'
      .. struct.pack(NUMBERS, seq, count or -1, remaining or -1, wait and ms_up(wait) or -1, -1)
    rows[slot] = {REFUSED[decision] and REFUSALS or MAIN, row}
  end
end

local labels

local function label_of(counter)
  if not labels then
    labels = {}
    local from = 1
    while from <= #ARGV[1] do
      labels[#labels + 1], from = struct.unpack('s', ARGV[1], from)
    end
  end
  return labels[counter]
end

-- Rows are written before counters: a server that refuses a row must not have counted the call. A row without a charge can be
-- found and replaced
if next(rows) then
  read_audit()
  for slot = 2 + #values, #reply do
    if rows[slot] then
      reply[slot] = append(rows[slot][1], rows[slot][2], now, max_bytes)
    end
  end
  write_audit()
end
for counter, window in pairs(changed) do
  if not values[counter] then
    add_to_index(index, KEYS[5 + counter], label_of(counter))
  end
  reply[1 + counter] = write(KEYS[5 + counter], logs[counter], window, now)
end
return reply
