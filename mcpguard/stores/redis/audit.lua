-- The audit's rows: in one stream the refusals, in another all others, so that a flood of the former cannot push out the latter.
-- Whoever writes a row makes room for it first, so that the audit never takes more memory than it may.
--
-- KEYS  the two streams, refusals second; how calls ended, by the id of their row; the newest id, and how much memory each
--       stream takes
--
-- Ids grow over both streams together: they are the order in which rows were written.

local MAIN, REFUSALS = 1, 2
local REFUSALS_SHARE = 1 / 4 -- what refusals keep of the memory when other rows need room
local STATE = '<i8i8i8i8' -- of the newest id the time in ms and the number; the bytes of each stream
local OUTCOME_BYTES = 110

local newest_ms, newest_number, held_bytes = 0, 0, {0, 0}

local function read_audit()
  local state = redis.call('GET', KEYS[4])
  if state then
    newest_ms, newest_number, held_bytes[MAIN], held_bytes[REFUSALS] = struct.unpack(STATE, state)
  end
end

local function write_audit()
  redis.call('SET', KEYS[4], struct.pack(STATE, newest_ms, newest_number, held_bytes[MAIN], held_bytes[REFUSALS]))
end

-- How much memory a row of this length takes, as measured with all lengths: 5 % more at the most, where the server's allocator
-- rounds up by a quarter, and mostly a sixth less
local function bytes_of(stream, length)
  return math.ceil(1.2 * length) + 80 + (stream == MAIN and OUTCOME_BYTES or 0)
end

local function oldest(stream)
  return redis.call('XRANGE', KEYS[stream], '-', '+', 'COUNT', 1)[1]
end

-- Drops a row, and how its call ended. Returns its bytes.
local function drop(stream, entry)
  redis.call('XDEL', KEYS[stream], entry[1])
  if stream == MAIN then
    redis.call('HDEL', KEYS[3], entry[1])
  end
  local bytes = bytes_of(stream, #entry[2][2])
  held_bytes[stream] = math.max(0, held_bytes[stream] - bytes)
  return bytes
end

-- Drops the row that has to go first, if a stream is to get more bytes than there is room for. Returns its bytes; nil if there is
-- room, or no row.
local function drop_one(most, stream, bytes)
  while held_bytes[MAIN] + held_bytes[REFUSALS] + bytes > most do
    local refusals = held_bytes[REFUSALS] + (stream == REFUSALS and bytes or 0)
    local from = refusals > most * REFUSALS_SHARE and REFUSALS or MAIN
    if held_bytes[from] == 0 then
      from = MAIN + REFUSALS - from
    end
    if held_bytes[from] == 0 then
      return nil
    end
    local entry = oldest(from)
    if entry then
      return drop(from, entry)
    end
    held_bytes[from] = 0 -- somebody has emptied it
  end
  return nil
end

-- Writes a row, whose id it returns, after making room for it. Where there is far too much, as after `max_mb` was lowered, two
-- go for one, but not all at once: calls wait.
local function append(stream, row, now, most)
  local bytes, freed, dropped = bytes_of(stream, #row), 0, 0
  while freed < bytes or dropped < 2 do
    local gone = drop_one(most, stream, bytes)
    if not gone then
      break
    end
    freed, dropped = freed + gone, dropped + 1
  end
  local now_ms = math.floor(now / 1000)
  if now_ms > newest_ms then
    newest_ms, newest_number = now_ms, 0
  else
    newest_number = newest_number + 1
  end
  local id = string.format('%.0f-%.0f', newest_ms, newest_number)
  redis.call('XADD', KEYS[stream], id, 'row', row)
  held_bytes[stream] = held_bytes[stream] + bytes
  return id
end
