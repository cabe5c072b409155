-- ledger_values(max bytes, entry, number of fields, fields…, ids…): what the ledger keeps of jobs
-- as they are now, with the payload last for final ones. One answer per id, false without a record;
-- fewer than asked for once `max bytes` are read.
--
-- `entry`, if given, is the oldest entry of the stream that names these jobs: then a job whose end
-- the ledger already has is false, too. Each answer is MessagePack: one value in place of thirty
-- takes Redis less time, and the reader much less.

local max_bytes, entry, width = tonumber(ARGV[4]), ARGV[5], tonumber(ARGV[6])

local function parts(text)
  local ms, number = string.match(text, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(number)
end

-- Records that end after the ledger joined expire only once the ledger has their end, so a TTL on
-- such a record shows that it has.
local joined_before = false
local joined = entry ~= '' and call('HGET', P .. 'clock', 'joined')
if joined then
  local ms, number = parts(entry)
  local last_ms, last_number = parts(joined)
  joined_before = ms > last_ms or ms == last_ms and number > last_number
end

local out = {}
for at = 7 + width, #ARGV do
  local job = P .. 'job:' .. ARGV[at]
  local facts = false
  if not joined_before or call('PTTL', job) == -1 then
    facts = call('HMGET', job, unpack(ARGV, 7, 6 + width))
    if facts[1] then
      facts[width + 1] = FINAL[facts[1]] and call('HGET', job, 'payload') or false
      facts = cmsgpack.pack(facts)
      max_bytes = max_bytes - #facts
    else
      facts = false
    end
  end
  out[#out + 1] = facts
  if max_bytes < 0 then
    break
  end
end
return out
