-- tick(): processes what is due. Each API calls it once a second; every claim does the same first.

if NOW_MS - tonumber(call('HGET', P .. 'clock', 'published') or 0) >= PUBLISH_INTERVAL_MS then
  publish_all()
end
local settled = process_due()
next_fence() -- a new server process notes where its fences begin, long before it gives one
call('ZREMRANGEBYSCORE', P .. 'workers', '-inf', NOW_MS - WORKER_TTL_MS)

-- The last tenth of Redis' memory is reserved for accepted jobs: while it is in use, nothing
-- enters. A server that does not report its memory is full only when it refuses a write.
local memory = redis.pcall('INFO', 'memory')
if type(memory) == 'string' then
  local used = tonumber(string.match(memory, 'used_memory:(%d+)') or 0)
  local max = tonumber(string.match(memory, '\nmaxmemory:(%d+)') or 0)
  if max > 0 and used > max * 0.9 then
    call('HSET', P .. 'clock', 'full', '1')
  else
    call('HDEL', P .. 'clock', 'full')
  end
end
commit()
return settled
