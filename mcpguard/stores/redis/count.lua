-- As limiter/sliding.charge. Statements: add `cost` to a live `log` at `at_us`, for a limit of `n` in a `window`
local grain = n <= EXACT and 0 or math.ceil(window / EXACT)
if not log then
  log = {at_us, at_us, cost, cost, ''}
elseif at_us - log[OPENED] < grain then
  log[NEWEST], log[COST], log[TOTAL] = at_us, log[COST] + cost, log[TOTAL] + cost
else
  if #log[CLOSED] >= (MAX_ENTRIES - 1) * ENTRY_BYTES then
    local entries_of, _, coalesce = coalescing()
    log = coalesce(entries_of(log), grain)
    local closed = log[CLOSED]
    if #closed >= (MAX_ENTRIES - 1) * ENTRY_BYTES then
      local _, first = struct.unpack(ENTRY, closed)
      local time, second, rest = struct.unpack(ENTRY, closed, 1 + ENTRY_BYTES)
      log[CLOSED] = struct.pack(ENTRY, time, first + second) .. string.sub(closed, rest)
    end
  end
  log = {at_us, at_us, cost, log[TOTAL] + cost, log[CLOSED] .. struct.pack(ENTRY, log[NEWEST], log[COST])}
end
