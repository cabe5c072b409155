-- pause(queue, '1' or '0'): no job of the queue starts from now on, or they may again. Those that
-- run are left alone.

local queue, on = ARGV[4], ARGV[5]
if on == '1' or call('HEXISTS', P .. 'paused', queue) == 1 then
  call('HSET', P .. 'paused', queue, on)
end
keep_up()
commit()
return 1
