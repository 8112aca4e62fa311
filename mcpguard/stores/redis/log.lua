-- Logs of counters: limiter/sliding.py in Lua, with `live.lua` and `count.lua`. Each function does what the function of the same name
-- does there.
--
-- A log is {opened, newest, cost, total, closed}, as `values.lua` describes it. `closed` is packed. nil is an empty log.

local OPENED, NEWEST, COST, TOTAL, CLOSED = 1, 2, 3, 4, 5

-- Returns functions that few runs need: a run spends time on each function that it makes
local function coalescing()
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
        last[1], last[2] = entry[1], math.min(last[2] + entry[2], MAX_COST)
      else
        opened = entry[1]
        grains[#grains + 1] = {entry[1], entry[2]}
      end
    end
    return log_of(opened, grains)
  end

  return entries_of, log_of, coalesce
end

local function unpack_log(value)
  local log = {struct.unpack(HEAD, value)}
  log[CLOSED] = string.sub(value, log[CLOSED]) -- the last value of unpack is the position after the head
  return log
end

-- Returns the values of the keys from `first` to `last`; false for a key that does not exist
local function read(first, last)
  local values
  for from = first, last, 1000 do -- unpack takes a limited number
    local some = redis.call('MGET', unpack(KEYS, from, math.min(from + 999, last)))
    values = values or some
    for at = 1, values ~= some and #some or 0 do
      values[#values + 1] = some[at]
    end
  end
  return values
end

-- Writes a counter. Returns the value.
local function write(key, log, window)
  local value = struct.pack(HEAD, log[OPENED], log[NEWEST], log[COST], log[TOTAL]) .. log[CLOSED]
  local expiry = math.ceil((log[NEWEST] + window * EXPIRY_WINDOWS - EXPIRY_ORIGIN_US) / 1000) + EXPIRY_SLACK_MS
  redis.call('SET', key, value, EXPIRY_OPTION, expiry)
  return value
end
