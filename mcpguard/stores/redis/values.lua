-- How the values of keys are packed. The client reads counters and rows, too.
--
-- A counter is a packed log: of its newest entry the time at which it was opened, its time and its cost; the cost of all entries; and
-- the entries before the newest, oldest first, each a time and a cost. So an admission costs the same however long the log is, and
-- often replaces only the head. Times are in microseconds. All numbers are below 2^53, so that a double holds them exactly.

local EXACT = 64
local MAX_ENTRIES = EXACT + 2
local MAX_COST = 4294967295 -- the most that an entry has room for. It is above every limit
local HEAD, HEAD_BYTES, ENTRY, ENTRY_BYTES = '<i8i8I4i8', 28, '<i8I4', 12

-- A counter's key expires a grain, a 64th of its window, after its newest entry, because an entry can become newer by as much
-- without a new expiry
local EXPIRY_WINDOWS = 1 + 1 / EXACT

-- The audit log's state: the time in ms and the number of the newest stream id; the bytes of each stream
local STATE = '<i8i8i8i8'

-- The numbers of a row: seq, count, remaining, wait in ms, repeats; -1: none
local NUMBERS = '<i8i8i8i8i8'

-- The memory that a row takes, by the length of its texts. As measured, a row takes at most 5 % more, where the server's allocator
-- rounds up by a quarter, and mostly a sixth less
local ROW_GROWTH, ROW_BYTES, OUTCOME_BYTES = 1.2, 80, 110
