-- Statements: make `id` the next stream id
local now_ms = math.floor(now / 1000)
if now_ms > newest_ms then
  newest_ms, newest_number = now_ms, 0
else
  newest_number = newest_number + 1
end
local id = string.format('%d-%d', newest_ms, newest_number)
