-- As limiter/sliding.live. Statements: drop from `log` what has left the window at `horizon`; nil if nothing is left
if log and log[NEWEST] <= horizon then
  log = nil
elseif log then
  local closed, total, first = log[CLOSED], log[TOTAL], 1
  while first <= #closed do
    local time, cost = struct.unpack(ENTRY, closed, first)
    if time > horizon then
      break
    end
    total, first = total - cost, first + ENTRY_BYTES
  end
  if first > 1 then
    log = {log[OPENED], log[NEWEST], log[COST], total, string.sub(closed, first)}
  end
end
