-- pause(queue, '1' or '0'): the queue's jobs may not start, or may start again. They stay where
-- they are, and running jobs are left alone.

local queue = ARGV[4]
if ARGV[5] == '1' then
  call('HSETNX', P .. 'paused', queue, NOW_STAMP)
elseif call('HDEL', P .. 'paused', queue) == 1 and not ring_if_due(queue)
  and call('EXISTS', P .. 'suspects:' .. queue) == 1 then
  ring(queue)
end
commit()
return 1
