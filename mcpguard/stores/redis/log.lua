-- A counter's log: core/limiter.py once more, for the server's side. What each function promises stands there.
--
-- A log is {opened, time, cost, time, cost, ...}, oldest first, in microseconds; {} has never admitted anything.
-- All numbers stay below 2^53, so that a double holds them exactly.

local EXACT = 64
local MAX_ENTRIES = EXACT + 2

local function text(number)
  return string.format('%.0f', number)
end

local function live(log, window, now)
  local horizon = now - window
  if #log < 3 or log[2] > horizon then
    return log
  end
  local first = 4
  while first <= #log and log[first] <= horizon do
    first = first + 2
  end
  if first > #log then
    return {}
  end
  local rest = {log[1]}
  for at = first, #log do
    rest[#rest + 1] = log[at]
  end
  return rest
end

local function used(log)
  local sum = 0
  for at = 3, #log, 2 do
    sum = sum + log[at]
  end
  return sum
end

-- nil if no wait is enough
local function retry_after(log, n, window, now)
  if n < 1 then
    return nil
  end
  local over = used(log) + 1 - n
  local wait = 0
  for at = 2, #log, 2 do
    if over <= 0 then
      break
    end
    over = over - log[at + 1]
    wait = log[at] + window - now
  end
  return wait
end

local function coalesce(log, grain)
  local entries = {}
  local opened = -1
  for at = 2, #log, 2 do
    if #entries > 0 and log[at] - opened < grain then
      entries[#entries - 1] = log[at]
      entries[#entries] = entries[#entries] + log[at + 1]
    else
      opened = log[at]
      entries[#entries + 1] = log[at]
      entries[#entries + 1] = log[at + 1]
    end
  end
  table.insert(entries, 1, opened)
  return entries
end

-- May change the log that it is given
local function charge(log, n, window, now)
  if #log == 0 then
    return {now, now, 1}
  end
  local grain = n <= EXACT and 0 or math.ceil(window / EXACT)
  if now - log[1] < grain then
    log[#log - 1] = now
    log[#log] = log[#log] + 1
    return log
  end
  if #log > 2 * MAX_ENTRIES - 1 then
    log = coalesce(log, grain)
  end
  log[1] = now
  log[#log + 1] = now
  log[#log + 1] = 1
  return log
end

local function merge(log, other, window)
  local pairs_of = {}
  for _, one in ipairs({log, other}) do
    for at = 2, #one, 2 do
      pairs_of[#pairs_of + 1] = {one[at], one[at + 1]}
    end
  end
  table.sort(pairs_of, function(a, b)
    return a[1] < b[1] or (a[1] == b[1] and a[2] < b[2])
  end)
  if #pairs_of == 0 then
    return {}
  end
  local merged = {pairs_of[#pairs_of][1]}
  for _, pair in ipairs(pairs_of) do
    merged[#merged + 1] = pair[1]
    merged[#merged + 1] = pair[2]
  end
  return #pairs_of <= EXACT and merged or coalesce(merged, math.ceil(window / EXACT))
end

-- A counter as it is stored: how many entries its log has, and the log. The client reads it, too.

local layouts = {}

local function layout(entries)
  if not layouts[entries] then
    layouts[entries] = '<I2i8' .. string.rep('i8I4', entries)
  end
  return layouts[entries]
end

local function unpack_log(value)
  if not value then
    return {}
  end
  local log = {select(2, struct.unpack(layout(struct.unpack('<I2', value)), value))}
  log[#log] = nil -- where it ends
  return log
end

-- The logs that the keys from `first` on hold, and their values
local function read(first)
  local logs, values = {nil, nil, nil, nil}, {nil, nil, nil, nil}
  for from = first, #KEYS, 1000 do -- unpack has its bounds
    local some = redis.call('MGET', unpack(KEYS, from, math.min(from + 999, #KEYS)))
    for at = 1, #some do
      values[#values + 1] = some[at]
      logs[#logs + 1] = unpack_log(some[at])
    end
  end
  return logs, values
end

local life, life_end -- the last one: counters of one call often have the same

-- A counter's key lives as long as an entry of its log can count. Returns what is stored.
local function write(key, log, window, now)
  local entries = (#log - 1) / 2
  local value = struct.pack(layout(entries), entries, unpack(log))
  local end_us = log[#log - 1] + window
  if end_us ~= life_end then
    life, life_end = text(life_ms(end_us, now)), end_us
  end
  redis.call('SET', key, value, LIFE, life)
  return value
end

-- The index has the labels of the counters that there are
local function name(index, key, label)
  redis.call('HSET', index, string.match(key, '%d+$'), label)
end
