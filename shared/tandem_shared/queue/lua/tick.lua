-- tick(): time passes. Run by each API once a second; every claim does the same first.

local settled = keep_up()
call('ZREMRANGEBYSCORE', P .. 'workers', '-inf', MS - ALIVE)

-- The last tenth of Redis' memory is for the jobs that were accepted: nothing new enters while it
-- is being used. A server that does not tell is full when it says so.
local memory = redis.pcall('INFO', 'memory')
if type(memory) == 'string' then
  local used = tonumber(string.match(memory, 'used_memory:(%d+)') or 0)
  local most = tonumber(string.match(memory, '\nmaxmemory:(%d+)') or 0)
  if most > 0 and used > most * 0.9 then
    call('HSET', P .. 'clock', 'full', '1')
  else
    call('HDEL', P .. 'clock', 'full')
  end
end
commit()
return settled
