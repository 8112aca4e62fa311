-- The limiter: core/limiter.py in Lua. Each function does what the function of the same name does there.
--
-- A log is {opened, newest, cost, total, closed}: the time at which its newest entry was opened; that entry's time and cost; the
-- cost of all entries; and the entries before the newest, packed, oldest first. nil is an empty log. So an admission costs the same
-- however long the log is. Times are in microseconds. All numbers are below 2^53, so that a double holds them exactly.

local EXACT = 64
local MAX_ENTRIES = EXACT + 2
local OPENED, NEWEST, COST, TOTAL, CLOSED = 1, 2, 3, 4, 5
local HEAD, ENTRY, ENTRY_BYTES = '<i8i8I4i8', '<i8I4', 12

local function text(number)
  return string.format('%.0f', number)
end

local function live(log, window, now)
  local horizon = now - window
  if not log or log[NEWEST] <= horizon then
    return nil
  end
  local closed, total, first = log[CLOSED], log[TOTAL], 1
  while first <= #closed do
    local time, cost = struct.unpack(ENTRY, closed, first)
    if time > horizon then
      break
    end
    total, first = total - cost, first + ENTRY_BYTES
  end
  if first == 1 then
    return log
  end
  return {log[OPENED], log[NEWEST], log[COST], total, string.sub(closed, first)}
end

local function used(log)
  return log and log[TOTAL] or 0
end

-- Returns nil if no wait is enough
local function retry_after(log, n, window, now)
  if n < 1 then
    return nil
  end
  local over, wait, at = used(log) + 1 - n, 0, 1
  while over > 0 do
    local time, cost = log[NEWEST], log[COST]
    if at <= #log[CLOSED] then
      time, cost = struct.unpack(ENTRY, log[CLOSED], at)
    end
    over, wait, at = over - cost, time + window - now, at + ENTRY_BYTES
  end
  return wait
end

-- Returns the entries of a log, each {time, cost}
local function entries_of(log)
  local entries = {}
  for at = 1, #log[CLOSED], ENTRY_BYTES do
    local time, cost = struct.unpack(ENTRY, log[CLOSED], at)
    entries[#entries + 1] = {time, cost}
  end
  entries[#entries + 1] = {log[NEWEST], log[COST]}
  return entries
end

local function log_of(opened, entries)
  local closed, total = {}, 0
  for at, entry in ipairs(entries) do
    total = total + entry[2]
    closed[at] = at < #entries and struct.pack(ENTRY, entry[1], entry[2]) or ''
  end
  return {opened, entries[#entries][1], entries[#entries][2], total, table.concat(closed)}
end

local function coalesce(entries, grain)
  local grains, opened = {}, -1
  for _, entry in ipairs(entries) do
    local last = grains[#grains]
    if last and entry[1] - opened < grain then
      last[1], last[2] = entry[1], last[2] + entry[2]
    else
      opened = entry[1]
      grains[#grains + 1] = {entry[1], entry[2]}
    end
  end
  return log_of(opened, grains)
end

-- May change its argument
local function charge(log, n, window, now)
  if not log then
    return {now, now, 1, 1, ''}
  end
  local grain = n <= EXACT and 0 or math.ceil(window / EXACT)
  if now - log[OPENED] < grain then
    log[NEWEST], log[COST], log[TOTAL] = now, log[COST] + 1, log[TOTAL] + 1
    return log
  end
  if #log[CLOSED] >= (MAX_ENTRIES - 1) * ENTRY_BYTES then
    log = coalesce(entries_of(log), grain)
  end
  return {now, now, 1, log[TOTAL] + 1, log[CLOSED] .. struct.pack(ENTRY, log[NEWEST], log[COST])}
end

local function merge(log, entries, window)
  local all = log and entries_of(log) or {}
  for _, entry in ipairs(entries) do
    all[#all + 1] = entry
  end
  table.sort(all, function(a, b)
    return a[1] < b[1] or (a[1] == b[1] and a[2] < b[2])
  end)
  if #all == 0 then
    return nil
  end
  return #all <= EXACT and log_of(all[#all][1], all) or coalesce(all, math.ceil(window / EXACT))
end

-- The value of a counter is its packed log. The client reads it, too.

local function unpack_log(value)
  local log = {struct.unpack(HEAD, value)}
  log[CLOSED] = string.sub(value, log[CLOSED]) -- the last value of unpack is the position after the head
  return log
end

-- Returns the logs and the values of the keys from `first` on
local function read(first)
  local logs, values = {nil, nil, nil, nil}, {nil, nil, nil, nil}
  for from = first, #KEYS, 1000 do -- unpack takes a limited number
    local some = redis.call('MGET', unpack(KEYS, from, math.min(from + 999, #KEYS)))
    for at = 1, #some do
      values[from - first + at] = some[at]
      logs[from - first + at] = some[at] and unpack_log(some[at]) or nil
    end
  end
  return logs, values
end

-- The last end of a window, and the expiry for it as text: the counters of one call often have the same
local last_end_us, expiry

-- Writes a counter, whose key expires with the newest entry of its log. Returns the value.
local function write(key, log, window, now)
  local value = struct.pack(HEAD, log[OPENED], log[NEWEST], log[COST], log[TOTAL]) .. log[CLOSED]
  local end_us = log[NEWEST] + window
  if end_us ~= last_end_us then
    last_end_us, expiry = end_us, text(expiry_ms(end_us, now))
  end
  redis.call('SET', key, value, EXPIRY_OPTION, expiry)
  return value
end

-- Adds the label of a new counter to the index
local function add_to_index(index, key, label)
  redis.call('HSET', index, string.match(key, '%d+$'), label)
end
