-- tick(): processes what is due. Each API calls it once a second. Returns the number of settled
-- leases, and whether more is due: then it is called again at once.

local PORTION = 100 -- of jobs of each kind, so that Redis is not blocked for long

if NOW_MS - tonumber(call('HGET', P .. 'clock', 'published') or 0) >= PUBLISH_INTERVAL_MS then
  publish_all()
end
local settled, _, _, most = process_due()
local places = call('ZRANGEBYSCORE', P .. 'agenda', '-inf', NOW_MS, 'LIMIT', 0, PORTION)
for i = 1, #places do
  most = math.max(most, enqueue_due(places[i], PORTION))
end
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
return { settled, (most >= PORTION or #places >= PORTION) and 1 or 0 }
