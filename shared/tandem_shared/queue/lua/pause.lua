-- pause(queue, '1' or '0'): the queue's jobs may not start, or may start again. Running jobs are
-- left alone.

local queue, on = ARGV[4], ARGV[5]
if on == '1' or call('HEXISTS', P .. 'paused', queue) == 1 then
  call('HSET', P .. 'paused', queue, on)
end
process_due()
commit()
return 1
