-- The entry to `running`: what keeps a job from starting, and what an attempt takes when it starts.
-- `leave` is its counterpart.

-- The record's fields that a claim needs: all, or the common ones (see `read_record`).
local function read_full(id)
  local job = P .. 'job:' .. id
  if call('HLEN', job) == SUBMITTED_FIELDS then
    local a = call('HMGET', job, 'state', 'v', 'attempt', 'queue', 'prio', 'due', 'tenant', 'max',
      'f', 'task', 'ver', 'opts', 'payload')
    return {
      state = a[1], v = a[2], attempt = a[3], queue = a[4], prio = a[5], due = a[6], tenant = a[7],
      max = a[8], f = a[9], task = a[10], ver = a[11], opts = a[12], payload = a[13],
    }
  end
  local a, r = call('HGETALL', job), {}
  for i = 1, #a, 2 do
    r[a[i]] = a[i + 1]
  end
  return r
end

-- Whether a worker with this version of a task, false or nil without it, may run a job that was
-- validated by `wanted`: a newer version that no live worker publishes any more is not waited for.
local function is_new_enough(task, version, wanted)
  return version and (version >= wanted
    or version >= tonumber(call('HGET', P .. 'versions', task) or wanted))
end

-- The limits of a job, by name.
local NO_LIMITS, unlimited_tasks = {}, {}
local function limits_of(r)
  if not r.ck and unlimited_tasks[r.task] then
    return NO_LIMITS
  end
  local task = 'task:' .. r.task
  local l = find_limit(task) or nil
  unlimited_tasks[r.task] = not l
  if not r.ck then
    return l and { [task] = l } or NO_LIMITS
  end
  local key = key_of(r)
  return { [key] = key_limit(key, r), [task] = l }
end

-- The reason why a job may not start now, nil if it may, and the limit if it is one. `knows(task)`
-- is the worker's version of a task. A reason names everything that a worker must offer, so that a
-- worker can take either all or none of the jobs parked for it.
local function obstacle(r, knows)
  if r.f ~= FORMAT_TEXT and tonumber(r.f) > RECORD_FORMAT then
    return 'format:' .. r.queue .. ':' .. r.f
  end
  if not is_new_enough(r.task, knows(r.task), tonumber(r.ver)) then
    return 'task:' .. r.queue .. ':' .. r.ver .. ':' .. r.task
  end
  for name, l in pairs(limits_of(r)) do
    if startable(name, l) <= 0 then
      return 'limit:' .. r.queue .. ':' .. r.prio .. ':' .. name, name
    end
  end
  return nil
end

-- Whether a live worker, as it registered, serves the job's queue and can run its task.
local function can_run(worker, r)
  local w = call('HMGET', P .. 'worker:' .. worker, 'tasks', 'queues', 'draining')
  local serves = w[2] and string.find(',' .. w[2] .. ',', ',' .. r.queue .. ',', 1, true)
  if not w[1] or w[3] == '1' or not serves then
    return false
  end
  local version = tonumber(call('HGET', P .. 'tasks:' .. w[1], r.task) or nil)
  return is_new_enough(r.task, version, tonumber(r.ver))
end

-- A worker that can run the job may be asleep, and the queue's bell may wake one that cannot.
local told = {} -- by reason
local function wake_able_worker(reason, r)
  local workers = told[reason] and {} or call('ZREVRANGE', P .. 'workers', 0, 63)
  told[reason] = true
  for i = 1, #workers do
    if can_run(workers[i], r) then
      workers_to_wake[workers[i]] = true
      return
    end
  end
end

-- Sets a job aside; whatever removes the reason brings it back. The caller has removed it from its
-- place. `limit` is the name of the limit that is the reason.
local function park(id, r, reason, limit)
  if r.state == 'queued' then
    local v = next_stamp(r)
    change_state(id, r, 'waiting', v)
    call('HSET', P .. 'job:' .. id, 'state', 'waiting', 'v', v)
  end
  if limit then
    park_by_limit(id, r, limit, find_limit(limit))
    touched[limit] = true
  else
    park_for(id, r, reason)
    call('SADD', P .. 'parked:' .. r.queue, reason)
    call('SADD', P .. 'parked', r.queue)
    wake_able_worker(reason, r)
  end
  for name in pairs(limits_of(r)) do
    if name ~= limit then
      serve(name, 1) -- it may have been brought back for a slot that it cannot use now
    end
  end
end

-- Appends what a worker needs of a job: nine values.
local function append_claimed(out, id, token, r)
  local n = #out
  out[n + 1], out[n + 2], out[n + 3], out[n + 4], out[n + 5] = id, token, r.attempt, r.max, r.task
  out[n + 6], out[n + 7], out[n + 8], out[n + 9] = r.tenant, r.payload, r.opts, r.due
end

local last_began = 0 -- stamp; the attempts of a worker begin in the order of their claims

-- Starts an attempt under a new token, or again under the token that begins with `stamp`. Appends
-- its lease to `leases`, and the job to `out`.
local function start_attempt(id, r, worker, leases, out, stamp)
  local v = next_stamp(r)
  if stamp and tonumber(stamp) > last_stamp(r) then
    v = stamp
  elseif not stamp then
    local earliest = last_began + 1
    last_began = math.max(tonumber(v), earliest)
    v = last_began == earliest and int(earliest) or v
  end
  local began = stamp or v
  local token = began .. '.' .. worker
  r.attempt = r.attempt == '0' and '1' or int(r.attempt + 1)
  change_state(id, r, 'running', v)
  call('HSET', P .. 'job:' .. id, 'state', 'running', 'v', v, 'began', began, 'token', token,
    'attempt', r.attempt)
  if r.attempts then
    call('HDEL', P .. 'job:' .. id, 'progress', 'oq')
  end
  leases[#leases + 1] = LEASE_END
  leases[#leases + 1] = id
  local slot
  for name, l in pairs(limits_of(r)) do
    if l.slots > 0 then
      call('SADD', P .. 'slots:' .. name, id .. ':' .. token)
      slot = string.sub(name, 1, 5) == 'task:' and name or slot
    end
    if l.every > 0 then
      l.tat = math.max(l.tat, NOW_US) + l.every
      call('HSET', P .. 'limit:' .. name, 'tat', int(l.tat))
    end
    touched[name] = l.kept or touched[name]
  end
  if slot then
    call('HSET', P .. 'job:' .. id, 'slot', slot)
  elseif r.slot then
    call('HDEL', P .. 'job:' .. id, 'slot') -- left by an earlier attempt
  end
  if r.exp then
    call('ZREM', P .. 'expiries', id)
  end
  append_claimed(out, id, token, r)
end
