-- retire(worker): it has handed back all it held and goes.

call('ZREM', P .. 'workers', ARGV[4])
call('DEL', P .. 'worker:' .. ARGV[4], P .. 'bell:' .. ARGV[4])
return 1
