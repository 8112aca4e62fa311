-- Writes and deletes audit rows. Refusals have a stream of their own, so that a flood of them cannot evict other rows. Room for a
-- row is made before it is written, so that the audit log never exceeds its bound.
--
-- KEYS  the stream of all other rows; the stream of refusals; the outcomes, a hash by stream id; the newest stream id and the bytes
--       of each stream
--
-- Stream ids grow over both streams together, in the order in which rows were written.

local MAIN, REFUSALS = 1, 2
local REFUSALS_SHARE = 1 / 4 -- the share of the memory that refusals keep when other rows need room

local newest_ms, newest_number, held_bytes = 0, 0, {0, 0}

-- Takes the value of the fourth key
local function read_audit(state)
  if state then
    newest_ms, newest_number, held_bytes[MAIN], held_bytes[REFUSALS] = struct.unpack(STATE, state)
  end
end

local function write_audit()
  redis.call('SET', KEYS[4], struct.pack(STATE, newest_ms, newest_number, held_bytes[MAIN], held_bytes[REFUSALS]))
end

local function bytes_of(stream, length)
  return math.ceil(ROW_GROWTH * length) + ROW_BYTES + (stream == MAIN and OUTCOME_BYTES or 0)
end

-- Returns functions that few runs need: a run spends time on each function that it makes
local function evicting()
  local function oldest(stream)
    return redis.call('XRANGE', KEYS[stream], '-', '+', 'COUNT', 1)[1]
  end

  -- Deletes a row and its outcome. Returns the row's bytes.
  local function drop(stream, entry)
    redis.call('XDEL', KEYS[stream], entry[1])
    if stream == MAIN then
      redis.call('HDEL', KEYS[3], entry[1])
    end
    local length = 0
    for at = 2, #entry[2], 2 do
      length = length + #entry[2][at]
    end
    local bytes = bytes_of(stream, length)
    held_bytes[stream] = math.max(0, held_bytes[stream] - bytes)
    return bytes
  end

  -- Deletes the first row to be evicted, if a stream is to get more bytes than there is room for. Returns the row's bytes; nil if
  -- there is room, or no row.
  local function drop_one(max_bytes, stream, bytes)
    while held_bytes[MAIN] + held_bytes[REFUSALS] + bytes > max_bytes do
      local refusals = held_bytes[REFUSALS] + (stream == REFUSALS and bytes or 0)
      local from = refusals > max_bytes * REFUSALS_SHARE and REFUSALS or MAIN
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
      held_bytes[from] = 0 -- another client has emptied the stream
    end
    return nil
  end

  return oldest, drop, drop_one
end

-- Makes room for a row and writes it: its lines up to the context, and the rest. Returns its stream id. If the log is far over its bound, as after `max_mb` was lowered, two
-- rows are evicted for each new one, and not all at once, because calls wait.
local function append(stream, beginning, row, max_bytes)
  local bytes = bytes_of(stream, #beginning + #row)
  if held_bytes[MAIN] + held_bytes[REFUSALS] + bytes > max_bytes then
    local _, _, drop_one = evicting()
    local freed, dropped = 0, 0
    while freed < bytes or dropped < 2 do
      local gone = drop_one(max_bytes, stream, bytes)
      if not gone then
        break
      end
      freed, dropped = freed + gone, dropped + 1
    end
  end
  -- INSERT id.lua
  redis.call('XADD', KEYS[stream], id, 'call', beginning, 'row', row)
  held_bytes[stream] = held_bytes[stream] + bytes
  return id
end
