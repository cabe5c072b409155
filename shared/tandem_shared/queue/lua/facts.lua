-- facts(room, entry, number of fields, fields…, ids…): what the ledger keeps of jobs as they are
-- now, their payload last and only of final ones. One answer an id, false without a record; it ends
-- early, once `room` bytes are said. `entry`, if given, is the oldest one of the stream that tells
-- of them: what the ledger has to the end is then false, too. Each is MessagePack: as one value
-- instead of thirty it takes Redis less time, and who reads it much less.

local room, entry, width = tonumber(ARGV[4]), ARGV[5], tonumber(ARGV[6])

local function parts(text)
  local ms, number = string.match(text, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(number)
end

-- Since a ledger joined, a record expires only once that has its end.
local told = false
local joined = entry ~= '' and call('HGET', P .. 'clock', 'joined')
if joined then
  local ms, number = parts(entry)
  local last, count = parts(joined)
  told = ms > last or ms == last and number > count
end

local out = {}
for at = 7 + width, #ARGV do
  local job = P .. 'job:' .. ARGV[at]
  local facts = false
  if not told or call('PTTL', job) == -1 then
    facts = call('HMGET', job, unpack(ARGV, 7, 6 + width))
    if facts[1] then
      facts[width + 1] = FINAL[facts[1]] and call('HGET', job, 'payload') or false
      facts = cmsgpack.pack(facts)
      room = room - #facts
    else
      facts = false
    end
  end
  out[#out + 1] = facts
  if room < 0 then
    break
  end
end
return out
