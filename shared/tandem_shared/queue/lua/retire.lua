-- retire(worker): it has handed back all it held and goes. Where it serves queues with due jobs
-- they are rung: a bell may have been lost on its way to this worker.

local me = P .. 'worker:' .. ARGV[4]
for queue in string.gmatch(call('HGET', me, 'queues') or '', '[^,]+') do
  ring_due(queue)
end
call('ZREM', P .. 'workers', ARGV[4])
call('DEL', me, P .. 'bell:' .. ARGV[4])
commit()
return 1
