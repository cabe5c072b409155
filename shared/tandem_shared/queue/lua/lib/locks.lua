-- Locks: who holds one, and who waits for it, in order.
--
-- A holder is one acquisition, '<id> <token> <number>'. It holds the lock for as long as its
-- attempt runs, so the job's lease is the lock's lease. `lk` of the record lists what the attempt
-- holds or waits for, '<number> <name>' per line; '<number> ' without a name is an acquisition that
-- was released before its `lock` call arrived.

-- In µs. Fences grow across all locks of the shard. A Redis that comes back older, or a replica
-- whose clock is slow, may not know the largest one: a new process begins above all that it knows.
local FENCE_GAP_US = 3600000000

-- `epoch` of `clock` is '<run id> <known> <first>': fences between `known` and `first` were given
-- by processes before this one, and are forgotten.
local function next_fence()
  local c = call('HMGET', P .. 'clock', 'fence', 'epoch')
  local last = tonumber(c[1] or 0)
  local info = redis.pcall('INFO', 'server')
  local run = type(info) == 'string' and string.match(info, 'run_id:(%w+)') or 'unknown'
  if c[1] and c[2] and string.match(c[2], '^%w+') == run then
    return int(math.max(NOW_US, last + 1))
  end
  local newest = call('XREVRANGE', P .. 'events', '+', '-', 'COUNT', 1)[1]
  local ms = newest and tonumber(string.match(newest[1], '^%d+')) or 0
  local fence = int(math.max(NOW_US, last, ms * 1000) + FENCE_GAP_US)
  call('HSET', P .. 'clock', 'fence', fence, 'epoch', run .. ' ' .. int(last) .. ' ' .. fence)
  return fence
end

-- Whether Redis knows of the grant of this fence; the lock may have been released since.
local function knows_fence(fence)
  local c = call('HMGET', P .. 'clock', 'fence', 'epoch')
  local known, first = string.match(c[2] or '', ' (%d+) (%d+)$')
  return fence <= tonumber(c[1] or 0)
    and not (known and fence > tonumber(known) and fence < tonumber(first))
end

-- Makes `holder` the holder and returns its fence.
local function grant_lock(tenant, name, holder)
  local fence = next_fence()
  call('HSET', P .. 'clock', 'fence', fence)
  call('HSET', P .. 'lock:' .. tenant .. ':' .. name, 'holder', holder, 'fence', fence)
  return fence
end

local function holder_runs(holder)
  local id, token = string.match(holder, '^(%S+) (%S+)')
  local r = call('HMGET', P .. 'job:' .. id, 'state', 'token')
  return r[1] == 'running' and r[2] == token
end

-- Gives the lock to the first waiting acquisition whose attempt still runs, or frees it.
local function hand_over_lock(tenant, name)
  local waits = P .. 'waits:' .. tenant .. ':' .. name
  local first = call('ZPOPMIN', waits)
  while first[1] do
    if holder_runs(first[1]) then
      grant_lock(tenant, name, first[1])
      local id, number = string.match(first[1], '^(%S+) %S+ (%d+)$')
      call('PUBLISH', P .. 'news:' .. id .. ':' .. number, 'lock')
      return
    end
    first = call('ZPOPMIN', waits)
  end
  call('DEL', P .. 'lock:' .. tenant .. ':' .. name)
end

local function release_lock(tenant, name, holder)
  if call('HGET', P .. 'lock:' .. tenant .. ':' .. name, 'holder') == holder then
    hand_over_lock(tenant, name)
  else
    call('ZREM', P .. 'waits:' .. tenant .. ':' .. name, holder)
  end
end

-- Releases everything that an attempt held or waited for, at its end.
local function release_locks(id, r)
  for number, name in string.gmatch(r.lk, '(%d+) ([^\n]*)\n') do
    if name ~= '' then
      release_lock(r.tenant, name, id .. ' ' .. r.token .. ' ' .. number)
    end
  end
  call('HDEL', P .. 'job:' .. id, 'lk')
end
