-- retire(worker): removes a worker that has handed back all its jobs. Rings its queues if they have
-- due jobs, since a bell may have been lost on its way to this worker.

local me = P .. 'worker:' .. ARGV[4]
for queue in string.gmatch(call('HGET', me, 'queues') or '', '[^,]+') do
  ring_if_due(queue)
end
call('ZREM', P .. 'workers', ARGV[4])
call('DEL', me, P .. 'bell:' .. ARGV[4])
commit()
return 1
