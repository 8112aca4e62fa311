-- Decides calls in order, against all their counters, and writes their audit rows: all of it, or nothing.
--
-- KEYS  the audit, the index of counters; then each counter
-- ARGV  the deadline in this server's time, wall-clock time for the rows, the session's newest row number; then each
--       counter's label; then eight for each call: its plan, what the session's journal remembers, its decision if it is
--       decided already, and its row's context, request id, hash of arguments, trace id and detail
-- Returns the time; and, unless the deadline has passed, the counters as they were and the ids of the rows, one for each
--       call that is news.

local PER_CALL = 8
local REFUSED = {rate_limited = true, denied = true, unauthenticated = true, invalid = true, unavailable = true}

local now = clock()
if now > tonumber(ARGV[1]) then
  return {text(now)}
end
local audit, index = KEYS[1], KEYS[2]
local wall, seq = ARGV[2], tonumber(ARGV[3])
local counters = {} -- unpack has its bounds
for at = 3, #KEYS do
  counters[at - 2] = KEYS[at]
end
local logs, values = read(counters)
local changed = {} -- by counter: its window
local denied = {} -- by counter: the session's denials since it last admitted
local storms = {} -- the denials that have a row
local rows = {}

-- core/limiter.decide. A limit is {n, window, counter, rule, whether it only reports, its words}.
local function decide(limits)
  local at_us = now
  for _, limit in ipairs(limits) do
    local log = logs[limit[3]]
    if log and #log > 0 and log[#log - 1] > at_us then
      at_us = log[#log - 1]
    end
  end
  local alive, held, full, enforced = {}, {}, {}, {}
  for at, limit in ipairs(limits) do
    local n, counter = limit[1], limit[3]
    if n > 0 and not alive[counter] then
      alive[counter] = live(logs[counter], limit[2], at_us)
      held[counter] = used(alive[counter])
    end
    if n == 0 or held[counter] + 1 > n then
      full[#full + 1] = at
      if limit[5] == 0 then
        enforced[#enforced + 1] = at
      end
    end
  end
  local exceeded = {}
  for _, at in ipairs(#enforced > 0 and enforced or full) do
    local limit = limits[at]
    exceeded[#exceeded + 1] = {at, retry_after(alive[limit[3]] or {}, limit[1], limit[2], at_us)}
  end
  if #enforced > 0 then
    return false, held, exceeded
  end
  local without_room, smallest = {}, {}
  for _, at in ipairs(full) do
    without_room[limits[at][4]] = true
  end
  for _, limit in ipairs(limits) do
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
    local tightest, left
    for at, limit in ipairs(limits) do
      local rest = limit[1] - held[limit[3]] - 1
      local other = limits[tightest]
      if not other or limit[5] < other[5] or (limit[5] == other[5] and rest < left) then -- an enforced one, if there is any
        tightest, left = at, rest
      end
    end
    return 'allowed', tightest, tightest and held[limits[tightest][3]] + 1, left, nil
  end
  local longest, wait
  for at, one in ipairs(exceeded) do
    if at == 1 or (wait and (not one[2] or one[2] > wait)) then
      longest, wait = one[1], one[2]
    end
  end
  local n, count = limits[longest][1], held[limits[longest][3]]
  local word = admitted and 'would_deny' or wait and 'rate_limited' or 'denied'
  if n == 0 then
    return word, longest, nil, nil, wait
  end
  return word, longest, count, math.max(0, n - count), wait
end

-- core/audit.Journal: how often this session was denied on a counter since it last admitted
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
  if word == 'allowed' or word == 'would_deny' then
    for _, limit in ipairs(limits) do
      denied[limit[3]] = 0
    end
  end
  return count
end

-- Equal denials share a row: whether this one has its own
local function is_news(word, context, words, is_storm)
  if not REFUSED[word] then
    return true
  end
  local key = word .. '\n' .. words .. '\n' .. context
  if is_storm or storms[key] then
    return false
  end
  storms[key] = true
  return true
end

local function ms_up(us)
  return text(math.ceil(us / 1000))
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

local function plan_of(json)
  if not plans[json] then
    plans[json] = cjson.decode(json)
  end
  return plans[json]
end

for first = 4 + #counters, #ARGV - PER_CALL + 1, PER_CALL do
  local limits = plan_of(ARGV[first])
  local remembered = ARGV[first + 1] == '' and {{}, {}} or cjson.decode(ARGV[first + 1])
  local word, context, detail = ARGV[first + 2], ARGV[first + 3], ARGV[first + 7]
  local words, is_storm = '', remembered[1][1] == 1
  local reported, count, left, wait
  if word == '' then
    local admitted, held, exceeded = decide(limits)
    word, reported, count, left, wait = verdict(limits, admitted, held, exceeded)
    count = with_denials(limits, word, reported, count, exceeded, remembered)
    if reported then
      words, is_storm = limits[reported][6], remembered[1][reported] == 1
    end
    if #exceeded > 1 then
      detail = with_exceeded(detail, limits, exceeded)
    end
  end
  if is_news(word, context, words, is_storm) then
    seq = seq + 1
    rows[#rows + 1] = {
      'time_us', wall, 'seq', text(seq), 'decision', word, 'context', context, 'reported', words,
      'request_id', ARGV[first + 4], 'args_hash', ARGV[first + 5], 'trace_id', ARGV[first + 6],
      'counted', count and text(count) or '', 'remaining', left and text(left) or '',
      'retry_after_ms', wait and ms_up(wait) or '', 'repeats', '', 'detail', detail,
    }
  end
end

for counter, window in pairs(changed) do
  write(index, counters[counter], ARGV[3 + counter], logs[counter], window, now, not values[counter])
end
local ids = {}
for at, row in ipairs(rows) do
  ids[at] = redis.call('XADD', audit, '*', unpack(row))
end
return {text(now), values, ids}
