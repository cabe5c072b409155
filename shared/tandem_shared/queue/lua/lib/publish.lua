-- What is published of a task: the newest entry among those that live workers bring, so that the
-- catalogue follows a deployment that is rolled back, too.
--
-- `tasks:<digest>` has the versions of a set of workers, and `entries:<digest>` what they publish,
-- '<slots> <every> <burst> <entry>'. Their union is kept in `versions` and `catalogue`; `published`
-- has the time, ms, at which a live worker was last seen with each task.

local PUBLISH_INTERVAL_MS = 5000 -- between two looks at the workers
local LIVE_MS = math.max(3 * LEASE_MS, 30000) -- since a worker's last heartbeat

-- The numbers of live workers that take jobs, by digest, and by digest and queues.
local function live_workers()
  local workers = call('ZRANGEBYSCORE', P .. 'workers', NOW_MS - LIVE_MS, '+inf')
  local digests, groups = {}, {}
  for i = 1, #workers do
    local w = call('HMGET', P .. 'worker:' .. workers[i], 'tasks', 'draining', 'queues')
    if w[1] and w[2] ~= '1' then
      digests[w[1]] = (digests[w[1]] or 0) + 1
      local group = w[1] .. ' ' .. (w[3] or '')
      groups[group] = (groups[group] or 0) + 1
    end
  end
  return digests, groups
end

-- Wakes the workers of queues in which jobs wait for a newer version than is published now.
local function wake_newer(task, version)
  for _, queue in ipairs(call('SMEMBERS', P .. 'parked')) do
    for _, reason in ipairs(call('SMEMBERS', P .. 'parked:' .. queue)) do
      local waited, of = string.match(reason, '^task:[^:]*:(%d+):(.*)$')
      if of == task and tonumber(waited) > version then
        ring(queue)
      end
    end
  end
end

local function publish(task, version, digest)
  local given = call('HGET', P .. 'entries:' .. digest, task)
  local slots, every, burst, entry = string.match(given or '', '^(%d+) (%d+) (%d+) (.*)$')
  if not entry or call('HGET', P .. 'catalogue', task) == entry then
    return
  end
  call('HSET', P .. 'catalogue', task, entry)
  call('HSET', P .. 'versions', task, version)
  call('HSET', P .. 'clock', 'catalogue', int(NOW_US))
  wake_newer(task, version)
  local limit = P .. 'limit:task:' .. task
  if slots ~= '0' or every ~= '0' or call('EXISTS', limit) == 1 then
    call('HSET', limit, 'slots', slots, 'every', every, 'burst', burst)
    serve('task:' .. task, MAX_SERVED) -- they may be higher now; `open_gates` serves the rest
  end
end

-- Publishes what live workers bring; of one version, that of the worker that registers now with
-- `digest`, if any. Forgets tasks that no live worker has had for a day.
local function publish_all(digest)
  local newest, from = {}, {}
  for one in pairs((live_workers())) do
    local tasks = call('HGETALL', P .. 'tasks:' .. one)
    for i = 1, #tasks, 2 do
      local task, version = tasks[i], tonumber(tasks[i + 1])
      local before = newest[task]
      if not before or version > before or (version == before and one == digest) then
        newest[task], from[task] = version, one
      end
    end
  end
  for task, version in pairs(newest) do
    local now = tonumber(call('HGET', P .. 'versions', task) or nil)
    if version ~= now or from[task] == digest then
      publish(task, version, from[task])
    end
    call('ZADD', P .. 'published', NOW_MS, task)
  end
  call('HSET', P .. 'clock', 'published', int(NOW_MS))
  local gone = call('ZRANGEBYSCORE', P .. 'published', '-inf', NOW_MS - TASKS_TTL_MS)
  for i = 1, #gone do
    call('HDEL', P .. 'catalogue', gone[i])
    call('HDEL', P .. 'versions', gone[i])
    call('ZREM', P .. 'published', gone[i])
    call('HSET', P .. 'clock', 'catalogue', int(NOW_US))
  end
end
