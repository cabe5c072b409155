-- Locks: who holds one, and who waits for it, in order.
--
-- A holder is one acquisition, '<id> <token> <number>'. It holds the lock for as long as its
-- attempt runs, so the job's lease is the lock's lease. `lk` of the record lists what the attempt
-- holds or waits for, '<number> <name>' per line; '<number> ' without a name is an acquisition that
-- was released before its `lock` call arrived.

-- Makes `holder` the holder and returns its fence. Fences grow across all locks of the shard and
-- follow the clock, so they grow even after Redis has lost data.
local function grant_lock(tenant, name, holder)
  local fence = int(math.max(NOW_US, tonumber(call('HGET', P .. 'clock', 'fence') or 0) + 1))
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
