-- join(backlog): a ledger follows the events, from the first one that is left; `backlog` is the
-- length of the stream above which nothing more is accepted. Consumers that have long gone and hold
-- nothing are forgotten.

local stream = P .. 'events'
local made = redis.pcall('XGROUP', 'CREATE', stream, 'ledger', '0', 'MKSTREAM')
if made.err and not string.find(made.err, 'BUSYGROUP', 1, true) then
  return made
end
call('HSET', P .. 'clock', 'ledger', ARGV[4])
-- The last entry from before: records that end until then expire without a ledger that has them.
if not made.err or call('HEXISTS', P .. 'clock', 'joined') == 0 then
  local facts = call('XINFO', 'STREAM', stream)
  for at = 1, #facts, 2 do
    if facts[at] == 'last-generated-id' then
      call('HSET', P .. 'clock', 'joined', facts[at + 1])
    end
  end
end
local consumers = call('XINFO', 'CONSUMERS', stream, 'ledger')
for i = 1, #consumers do
  local facts = {}
  for at = 1, #consumers[i], 2 do
    facts[consumers[i][at]] = consumers[i][at + 1]
  end
  if facts.pending == 0 and facts.idle > 300000 then
    call('XGROUP', 'DELCONSUMER', stream, 'ledger', facts.name)
  end
end
return 1
