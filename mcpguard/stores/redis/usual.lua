-- Decides the usual call: a single request whose limits are enforced and count calls, each on a counter of its own, which exists and
-- has room. See `charge.lua`, which decides every other call, and this one if it turns out to be another: then nothing has been
-- written yet. This comes before all else, because every run makes the script's functions and tables anew.

-- What it returns in place of the table of the request, because a server spends time on each table and value of a reply: the two
-- numbers of the row's stream id, the index of the reported limit, and what its counter holds
local USUAL = '<i8i8I4i8'
local LIMIT_BYTES = 56 -- see LIMIT in `charge.lua`

local requests = math.floor(#ARGV / 2) - 1
local deadline, seq, max_bytes, is_usual, texts_from = struct.unpack('<i8i8i8B', ARGV[2 + requests])
if now > deadline then
  return {now}
end
local counters = #KEYS - 5
local reply -- the state of the audit log, and the value of each counter; from `charge.lua` on what it returns

if is_usual == 1 then
  reply = redis.call('MGET', unpack(KEYS, 4, 4 + counters))
  local reported, count, remaining = 0, 0, false
  -- the new value of each counter; and its head, if the rest of the value stays as it is
  local values, heads = {nil, nil, nil, nil}, {nil, nil, nil, nil}
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
    local after
    if newest <= now - window then
      total, after = 0, struct.pack(HEAD, now, now, 1, 1)
    else
      while from <= #value do
        local time, left = struct.unpack(ENTRY, value, from)
        if time > now - window then
          break
        end
        total, from = total - left, from + ENTRY_BYTES
      end
      if now - opened < (n <= EXACT and 0 or math.ceil(window / EXACT)) then
        local head = struct.pack(HEAD, opened, now, cost + 1, total + 1)
        after = head .. string.sub(value, from)
        heads[counter] = from == 1 + HEAD_BYTES and head
      elseif #value - from < (MAX_ENTRIES - 1) * ENTRY_BYTES - 1 then
        after = struct.pack(HEAD, now, now, 1, total + 1) .. string.sub(value, from) .. struct.pack(ENTRY, newest, cost)
      end
    end
    if total >= n or not after then
      break
    end
    if not remaining or n - total - 1 < remaining then
      reported, count, remaining = counter, total + 1, n - total - 1
    end
    values[counter] = after
  end

  if reply[1] and values[counters] then
    local first, last = struct.unpack('<I4I4', ARGV[2], 29 + (reported - 1) * LIMIT_BYTES)
    local beginning = ARGV[4]
    local row = 'allowed\n' .. string.sub(ARGV[2], first, last) .. '\n\n' .. struct.pack(NUMBERS, seq + 1, count, remaining, -1, -1)
    local bytes = math.ceil(ROW_GROWTH * (#beginning + #row)) + ROW_BYTES + OUTCOME_BYTES
    local newest_ms, newest_number, main, refusals = struct.unpack(STATE, reply[1])
    if main + refusals + bytes <= max_bytes then
      -- INSERT id.lua
      -- The row first, as in `charge.lua`. After it each command is tried before a counter depends on it
      redis.call('XADD', KEYS[1], id, 'call', beginning, 'row', row)
      redis.call('SETRANGE', KEYS[4], 0, struct.pack(STATE, newest_ms, newest_number, main + bytes, refusals))
      for counter = 1, counters do
        if not heads[counter] then
          local window = struct.unpack('<i8', ARGV[2], 9 + (counter - 1) * LIMIT_BYTES)
          local expiry = math.ceil((now + window * EXPIRY_WINDOWS - EXPIRY_ORIGIN_US) / 1000) + EXPIRY_SLACK_MS
          redis.call('SET', KEYS[4 + counter], values[counter], EXPIRY_OPTION, expiry)
        end
      end
      for counter = 1, counters do
        if heads[counter] then
          redis.call('SETRANGE', KEYS[4 + counter], 0, heads[counter])
        end
        reply[1 + counter] = values[counter]
      end
      reply[1], reply[2 + counters] = now, struct.pack(USUAL, newest_ms, newest_number, reported, count)
      return reply
    end
  end
end
