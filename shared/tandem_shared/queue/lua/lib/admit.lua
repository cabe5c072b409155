-- The entry to `running`, twin of `leave`: what a job takes hold of when it starts, and why it may
-- not start now.

-- What a claim needs to know of a record: all of it but for its stamp of submission, see `read`.
local function read_whole(id)
  local job = P .. 'job:' .. id
  if call('HLEN', job) == SUBMITTED then
    local a = call('HMGET', job, 'state', 'v', 'attempt', 'queue', 'prio', 'due', 'tenant', 'max', 'f', 'task', 'ver', 'opts',
      'payload')
    return {
      state = a[1], v = a[2], attempt = a[3], queue = a[4], prio = a[5], due = a[6], tenant = a[7], max = a[8], f = a[9],
      task = a[10], ver = a[11], opts = a[12], payload = a[13],
    }
  end
  local a, r = call('HGETALL', job), {}
  for i = 1, #a, 2 do
    r[a[i]] = a[i + 1]
  end
  return r
end

-- A reason names all that a worker has to be, so that of the jobs set aside for one it may take all
-- or none.
local function obstacle(r, knows)
  if r.f ~= FORM and tonumber(r.f) > RECORD_FORMAT then
    return 'format:' .. r.queue .. ':' .. r.f
  end
  local version = knows(r.task)
  if not version or version < tonumber(r.ver) then
    return 'task:' .. r.queue .. ':' .. r.ver .. ':' .. r.task
  end
  if r.ck then
    local key = 'key:' .. r.tenant .. ':' .. r.ck
    if call('SCARD', P .. key) >= tonumber(r.cl) then
      return key
    end
  end
  if full(r.task) then
    return 'limit:' .. r.queue .. ':' .. r.prio .. ':' .. r.task
  end
  return nil
end

local touched = {} -- limited tasks of which this claim started a job or set one aside

-- Whether a live worker, as it said of itself, serves the job's queue and can run its task.
local function suits(worker, r)
  local w = call('HMGET', P .. 'worker:' .. worker, 'tasks', 'queues', 'draining')
  if not w[1] or w[3] == '1' or not string.find(',' .. w[2] .. ',', ',' .. r.queue .. ',', 1, true) then
    return false
  end
  local version = tonumber(call('HGET', P .. 'tasks:' .. w[1], r.task) or nil)
  return version and version >= tonumber(r.ver)
end

-- Sets a job aside for a reason; whatever lifts the reason brings it back. The caller has taken it
-- out of where it stood: before, since what happens here may bring it back at once.
local function park(id, r, why)
  if r.state == 'queued' then
    local v = stamp(r)
    move(id, r, 'waiting', v)
    call('HSET', P .. 'job:' .. id, 'state', 'waiting', 'v', v)
  end
  call('HSET', P .. 'job:' .. id, 'park', why)
  call('ZADD', P .. 'park:' .. why, r.due, id)
  if string.sub(why, 1, 6) == 'limit:' then
    call('SADD', P .. 'limited:' .. r.task, r.queue .. ':' .. r.prio)
    touched[r.task] = true
    if r.ck then
      wake_key(r, true)
    end
    return
  end
  -- It may have been woken for a slot that it cannot use now.
  if string.sub(why, 1, 4) == 'key:' then
    wake_task(r)
    return
  end
  call('SADD', P .. 'parked', why)
  wake(r)
  -- A worker that can run it may be asleep, and the bell of the queue may wake another that cannot.
  local workers = call('ZREVRANGE', P .. 'workers', 0, 63)
  for i = 1, #workers do
    if suits(workers[i], r) then
      calls[workers[i]] = true
      return
    end
  end
end

-- Starts an attempt under a new token and adds what the worker needs to `out`.
local function admit(id, r, worker, leases, out)
  local v = stamp(r)
  local token = v .. '.' .. worker
  r.attempt = r.attempt == '0' and '1' or int(r.attempt + 1)
  move(id, r, 'running', v)
  call('HSET', P .. 'job:' .. id, 'state', 'running', 'v', v, 'began', v, 'token', token, 'attempt', r.attempt)
  if r.attempts then
    call('HDEL', P .. 'job:' .. id, 'progress', 'oq')
  end
  leases[#leases + 1] = LEASE_END
  leases[#leases + 1] = id
  if r.ck then
    call('SADD', P .. 'key:' .. r.tenant .. ':' .. r.ck, id .. ':' .. token)
  end
  local l = limit(r.task)
  if l and l.slots > 0 then
    call('SADD', P .. 'slots:' .. r.task, id .. ':' .. token)
    call('HSET', P .. 'job:' .. id, 'slot', r.task)
  elseif r.slot then
    call('HDEL', P .. 'job:' .. id, 'slot') -- an earlier attempt's
  end
  if l then
    if l.every > 0 then
      l.tat = math.max(l.tat, US) + l.every
      call('HSET', P .. 'limit:' .. r.task, 'tat', int(l.tat))
    end
    touched[r.task] = true
  end
  if r.exp then
    call('ZREM', P .. 'expiries', id)
  end
  local n = #out
  out[n + 1], out[n + 2], out[n + 3], out[n + 4] = id, token, r.attempt, r.max
  out[n + 5], out[n + 6], out[n + 7], out[n + 8], out[n + 9] = r.task, r.tenant, r.payload, r.opts, r.due
end
