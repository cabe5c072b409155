-- join(backlog): a ledger consumes the events, from the oldest that is left. While it has not read
-- `backlog` bytes, no new job is accepted. Removes consumers that are long gone and hold nothing.

local stream = P .. 'events'
local created = redis.pcall('XGROUP', 'CREATE', stream, 'ledger', '0', 'MKSTREAM')
if created.err and not string.find(created.err, 'BUSYGROUP', 1, true) then
  return created
end
call('HSET', P .. 'clock', 'ledger', ARGV[4])
-- Remember the last entry before: records that ended by then expire without the ledger's consent.
if not created.err or call('HEXISTS', P .. 'clock', 'joined') == 0 then
  local info = call('XINFO', 'STREAM', stream)
  for at = 1, #info, 2 do
    if info[at] == 'last-generated-id' then
      call('HSET', P .. 'clock', 'joined', info[at + 1])
    end
  end
end
note_read()
local consumers = call('XINFO', 'CONSUMERS', stream, 'ledger')
for i = 1, #consumers do
  local consumer = {}
  for at = 1, #consumers[i], 2 do
    consumer[consumers[i][at]] = consumers[i][at + 1]
  end
  if consumer.pending == 0 and consumer.idle > 300000 then
    call('XGROUP', 'DELCONSUMER', stream, 'ledger', consumer.name)
  end
end
return 1
