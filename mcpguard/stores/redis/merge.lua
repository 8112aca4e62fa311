local entries_of, log_of, coalesce = coalescing()

-- As limiter/sliding.merge; `entries` are {time, cost}
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

