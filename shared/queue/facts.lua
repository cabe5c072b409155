-- facts(room, number of fields, fields…, ids…): what the ledger keeps of jobs as they are now, their payload last and
-- only of final ones. One answer an id, false without a record; it ends early, once `room` bytes are said.

local room, width = tonumber(ARGV[4]), tonumber(ARGV[5])
local out = {}
for at = 6 + width, #ARGV do
  local job = P .. 'job:' .. ARGV[at]
  local state = call('HGET', job, 'state')
  local facts = false
  if state then
    facts = call('HMGET', job, unpack(ARGV, 6, 5 + width))
    facts[width + 1] = FINAL[state] and call('HGET', job, 'payload') or false
    for i = 1, width + 1 do
      room = room - (facts[i] and #facts[i] or 0)
    end
  end
  out[#out + 1] = facts
  if room < 0 then
    break
  end
end
return out
