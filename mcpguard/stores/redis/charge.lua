-- Decides calls in order, against all their counters, and writes their audit rows: all of it, or nothing.
--
-- KEYS  as `audit.lua` has them; the index of counters; then each counter
-- ARGV  the counters' labels; the deadline in this server's time, the session's newest row number, and how much memory the
--       audit may take; the session's allowance of rows for denials; then two for each call: its limits; and, each with a NUL
--       behind it, its decision if it is decided already, what the session's journal remembers, and of its row what comes
--       before the context, the context, the detail, and what a denial has in place of a detail that is too long for it
-- Returns the time; and, unless the deadline has passed, each counter as it is now, and of each call: the id of its row if it is
--       news, the decision, the limit that is reported (0: none), what its counter holds, the wait, and how many limits had
--       no room, which follow with their waits. All in one table, for a server looks at each for a while.
--
-- Every call waits for this. What costs most are numbers as text and tables that grow: {nil, nil, nil, nil} has its places.

local PER_CALL = 2
local CALL = 'ssssss'
local NUMBERS = '<i8i8i8i8i8' -- of a row: its number, what is counted, what is left, the wait, how often it is repeated; -1: none
local LIMIT = '<i8i8I4I4I4s' -- n, window, counter (0: none), rule, whether it only reports, its words
local REFUSED = {rate_limited = true, denied = true, unauthenticated = true, invalid = true, unavailable = true}
local NOTHING_REMEMBERED = {{}, {}}

local now = clock()
local deadline, seq, most = struct.unpack('<i8i8i8', ARGV[2])
if now > deadline then
  return {now}
end
local index = KEYS[5]
local logs, values = read(6)
local changed = {nil, nil, nil, nil} -- by counter: its window
local denied = {} -- by counter: the session's denials since it last admitted
local storms = {} -- the denials that have a row
local allowance -- core/journal.Journal.allowance, once it is needed
local rows = {} -- by the place of their id in the reply, each {stream, text}
local reply = {now, nil, nil, nil, nil, nil, nil, nil, nil, nil}
for at = 1, #values do
  reply[1 + at] = values[at]
end

-- core/limiter.decide
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

-- core/verdict.verdict: the decision's word, the limit that is reported, what its counter holds, what is left, the wait
local function verdict(limits, admitted, held, exceeded)
  if #exceeded == 0 then
    local tightest, left, observed = 0, false, 1
    for at = 1, #limits do
      local limit = limits[at]
      local rest = limit[1] - held[limit[3]] - 1
      if not left or limit[5] < observed or (limit[5] == observed and rest < left) then -- an enforced one, if there is any
        tightest, left, observed = at, rest, limit[5]
      end
    end
    return 'allowed', tightest, tightest > 0 and held[limits[tightest][3]] + 1, left, false
  end
  local longest, wait = exceeded[1][1], exceeded[1][2]
  for _, one in ipairs(exceeded) do
    if wait and (not one[2] or one[2] > wait) then
      longest, wait = one[1], one[2]
    end
  end
  local n, count = limits[longest][1], held[limits[longest][3]]
  local word = admitted and 'would_deny' or wait and 'rate_limited' or 'denied'
  if n == 0 then
    return word, longest, false, false, wait
  end
  return word, longest, count, math.max(0, n - count), wait
end

-- core/journal.Journal: how often this session was denied on a counter since it last admitted
local function with_denials(limits, word, reported, count, exceeded, remembered)
  if word == 'rate_limited' then
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
  if word ~= 'denied' and (remembered ~= NOTHING_REMEMBERED or next(denied)) then
    for at = 1, #limits do
      denied[limits[at][3]] = 0
    end
  end
  return count
end

-- core/journal.Journal: whether this one has its own row. Equal denials share one, and beyond a budget those of one kind
local function is_news(word, beginning, context, words, detail, is_storm)
  if not REFUSED[word] then
    return true
  end
  local key = word .. '\n' .. words .. '\n' .. context
  if is_storm or storms[key] then
    return false
  end
  allowance = allowance or cjson.decode(ARGV[3])
  local row_bytes, all, left, sums = unpack(allowance)
  local kind = word .. ' ' .. (string.match(words, '^{"axis":"(%a+)"') or '')
  local request_id = string.match(beginning, '\n([^\n]*)')
  local rest = (left[kind] or all) - row_bytes - #context - #detail - #request_id
  if rest >= 0 then
    left[kind], storms[key] = rest, true
    return true
  end
  local is_first = not sums[kind]
  sums[kind] = true
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
  local word, told, beginning, context, detail, short = struct.unpack(CALL, ARGV[first + 1])
  local remembered = told == '' and NOTHING_REMEMBERED or cjson.decode(told)
  local words, is_storm = '', remembered[1][1] == 1
  local reported, held, count, left, wait, exceeded = 0, false, false, false, false, {}
  local limits
  if word == '' then
    limits = limits_of(ARGV[first])
    local admitted, before
    admitted, before, exceeded = decide(limits)
    word, reported, held, left, wait = verdict(limits, admitted, before, exceeded)
    count = with_denials(limits, word, reported, held, exceeded, remembered)
    if reported > 0 then
      words, is_storm = limits[reported][6], remembered[1][reported] == 1
    end
  end
  if short ~= '' and REFUSED[word] then
    detail = short
  end
  if #exceeded > 1 then
    detail = with_exceeded(detail, limits, exceeded)
  end
  local place = #reply + 1
  reply[place], reply[place + 1], reply[place + 2] = false, word, reported
  reply[place + 3], reply[place + 4], reply[place + 5] = held, wait, #exceeded
  for at, one in ipairs(exceeded) do
    reply[place + 4 + 2 * at], reply[place + 5 + 2 * at] = one[1], one[2]
  end
  if is_news(word, beginning, context, words, detail, is_storm) then
    seq = seq + 1
    local row = beginning .. '\n' .. context .. '\n' .. word .. '\n' .. words .. '\n' .. detail .. '\n'
      .. struct.pack(NUMBERS, seq, count or -1, left or -1, wait and ms_up(wait) or -1, -1)
    rows[place] = {REFUSED[word] and REFUSALS or MAIN, row}
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

-- Rows first: what a server has refused to write it must not have counted, and a row alone is found and replaced
if next(rows) then
  read_audit()
  for place = 2 + #values, #reply do
    if rows[place] then
      reply[place] = append(rows[place][1], rows[place][2], now, most)
    end
  end
  write_audit()
end
for counter, window in pairs(changed) do
  if not values[counter] then
    name(index, KEYS[5 + counter], label_of(counter))
  end
  reply[1 + counter] = write(KEYS[5 + counter], logs[counter], window, now)
end
return reply
