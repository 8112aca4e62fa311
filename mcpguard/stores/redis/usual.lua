-- Decides the usual call: a single request whose limits are enforced and count calls, each on a counter of its own, which exists and
-- has room. See `charge.lua`, which decides every other call, and this one if it turns out to be another: then nothing has been
-- written yet. This comes before all else, because every run makes the script's functions and tables anew.

local LIMIT_BYTES = 36 -- see LIMIT in `charge.lua`

local requests = math.floor(#ARGV / 2) - 1
local deadline, seq, max_bytes, is_usual, texts_from = struct.unpack('<i8i8i8B', ARGV[2 + requests])
if now > deadline then
  return {now}
end
local counters = #KEYS - 5
local reply -- see `charge.lua`; at first the state of the audit log, then the value of each counter

if is_usual == 1 then
  reply = redis.call('MGET', unpack(KEYS, 4, 4 + counters))
  local reported, count, remaining = 0, 0, false
  local heads, tails = {nil, nil, nil, nil}, {nil, nil, nil, nil} -- of each counter; no tail: the entries stay as they are
  for counter = 1, counters do
    local value = reply[1 + counter]
    if not value then
      break
    end
    local n, window = struct.unpack('<i8i8', ARGV[2], 1 + (counter - 1) * LIMIT_BYTES)
    local opened, newest, cost, total, from = struct.unpack(HEAD, value)
    if newest > now then
      break
    end
    local head, tail
    if newest <= now - window then
      total, head, tail = 0, struct.pack(HEAD, now, now, 1, 1), ''
    else
      while from <= #value do
        local time, left = struct.unpack(ENTRY, value, from)
        if time > now - window then
          break
        end
        total, from = total - left, from + ENTRY_BYTES
      end
      if now - opened < (n <= EXACT and 0 or math.ceil(window / EXACT)) then
        head, tail = struct.pack(HEAD, opened, now, cost + 1, total + 1), from > 1 + HEAD_BYTES and string.sub(value, from)
      elseif #value - from < (MAX_ENTRIES - 1) * ENTRY_BYTES - 1 then
        head, tail = struct.pack(HEAD, now, now, 1, total + 1), string.sub(value, from) .. struct.pack(ENTRY, newest, cost)
      end
    end
    if total >= n or not head then
      break
    end
    if not remaining or n - total - 1 < remaining then
      reported, count, remaining = counter, total + 1, n - total - 1
    end
    heads[counter], tails[counter] = head, tail
  end

  if reply[1] and heads[counters] then
    local first, last = struct.unpack('<I4I4', ARGV[2], reported * LIMIT_BYTES - 7)
    local beginning = ARGV[4]
    local row = 'allowed\n' .. string.sub(ARGV[2], first, last) .. '\n\n' .. struct.pack(NUMBERS, seq + 1, count, remaining, -1, -1)
    local bytes = math.ceil(ROW_GROWTH * (#beginning + #row)) + ROW_BYTES + OUTCOME_BYTES
    local newest_ms, newest_number, main, refusals = struct.unpack(STATE, reply[1])
    if main + refusals + bytes <= max_bytes then
      -- INSERT id.lua
      -- The row first, as in `charge.lua`. After it each command is tried before a counter depends on it
      redis.call('XADD', KEYS[1], id, 'call', beginning, 'row', row)
      redis.call('SETRANGE', KEYS[4], 0, struct.pack(STATE, newest_ms, newest_number, main + bytes, refusals))
      local parts, sizes = {nil, nil, nil, nil, nil, nil, nil, nil}, {nil, nil, nil, nil}
      for counter = 1, counters do
        if tails[counter] then
          local window = struct.unpack('<i8', ARGV[2], 9 + (counter - 1) * LIMIT_BYTES)
          local expiry = math.ceil((now + window * EXPIRY_WINDOWS - EXPIRY_ORIGIN_US) / 1000) + EXPIRY_SLACK_MS
          reply[1 + counter] = heads[counter] .. tails[counter]
          redis.call('SET', KEYS[4 + counter], reply[1 + counter], EXPIRY_OPTION, expiry)
        end
      end
      for counter = 1, counters do
        local head, value = heads[counter], reply[1 + counter]
        if not tails[counter] then
          redis.call('SETRANGE', KEYS[4 + counter], 0, head)
        end
        parts[2 * counter - 1], parts[2 * counter], sizes[counter] = head, value, (#value - HEAD_BYTES) / ENTRY_BYTES
      end
      return struct.pack('<i8i8i8I4i8', now, newest_ms, newest_number, reported, count) .. string.char(unpack(sizes)) .. table.concat(parts)
    end
  end
end
