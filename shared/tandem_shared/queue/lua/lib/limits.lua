-- Limits: how many attempts run at once, by task and by concurrency key, and how many of a task
-- start in a period.
--
-- The name of a limit is 'task:<task>' or 'key:<tenant>:<key>'. `slots:<name>` has the attempts
-- that run under it, `limit:<name>` what it allows. A worker sets a task's when it registers; a
-- key's is kept from the first job that waits for it until no job holds it. Jobs wait for a limit
-- in `park:limit:<queue>:<priority>:<name>`, by due time; `limited:<name>` lists these places.
-- `serve` brings jobs back: one for each slot that is given back, and some whenever the limit's
-- time in `gates` has come. So a job that was brought back and does not start (its queue is paused,
-- or no worker serves it) holds others up for a moment only.

local GATE_INTERVAL_MS = 50 -- at least, between two looks at a limit; a rate's burst covers it
local WAITERS_READ = 16 -- jobs of a place, to find one that may start
local MAX_SERVED = 100 -- jobs brought back at once
local GATE_RETRY_MS = 1000 -- then further jobs are brought back, if the first have not started

-- Every 4th turn tries normal first and every 16th low first, so that no priority starves. Each
-- kind of turn has its own count: with one for all, one of two queues would get all the low-first
-- turns.
local NORMAL_FIRST, LOW_FIRST = { 'normal', 'high', 'low' }, { 'low', 'normal', 'high' }
local function priority_order(turn)
  local fourths, sixteenths = math.floor(turn / 4), math.floor(turn / 16)
  if turn % 16 == 0 then
    return LOW_FIRST, sixteenths
  elseif turn % 4 == 0 then
    return NORMAL_FIRST, fourths - sixteenths
  end
  return HIGH_FIRST, turn - fourths
end

-- What a limit allows, false if it is not set. `tat` (GCRA's theoretical arrival time, µs) is when
-- the next start would be exactly on time. A later one than starts can cause comes from an earlier
-- rate, or from before the clock stepped back, and is capped. `at` is the stamp of the submission
-- that set a key's limit, `kept` whether it is in Redis.
local limits = {}
local function find_limit(name)
  local l = limits[name]
  if l == nil then
    local a = call('HMGET', P .. 'limit:' .. name, 'slots', 'every', 'burst', 'tat', 'turn', 'at')
    l = a[1] and {
      slots = tonumber(a[1]), every = tonumber(a[2] or 0), burst = tonumber(a[3] or 0),
      tat = tonumber(a[4] or 0), turn = tonumber(a[5] or 0), at = tonumber(a[6] or 0), kept = true,
    } or false
    local latest = l and NOW_US + l.burst * l.every
    if l and l.tat > latest then
      l.tat = latest
      call('HSET', P .. 'limit:' .. name, 'tat', int(latest))
    end
    limits[name] = l
  end
  return l
end

local touched = {} -- names of limits under which this claim started or parked a job

-- The name of the limit of the job's concurrency key, nil if it has none.
local function key_of(r)
  return r.ck and 'key:' .. r.tenant .. ':' .. r.ck
end

-- The limit of the job's concurrency key. Jobs may ask for different ones: while jobs wait for the
-- key, the newest submission's counts.
local function key_limit(name, r)
  local l, slots, at = find_limit(name), tonumber(r.cl), tonumber(r.at)
  if not l then
    l = { slots = slots, every = 0, burst = 0, tat = 0, turn = 0, at = at }
    limits[name] = l
  elseif at > l.at then
    if l.kept and slots ~= l.slots then
      call('ZADD', P .. 'gates', NOW_MS, name)
    end
    if l.kept then
      call('HSET', P .. 'limit:' .. name, 'slots', slots, 'at', r.at)
    end
    l.slots, l.at = slots, at
  end
  return l
end

-- How many attempts may start under the limit now; if only the rate forbids one, also the ms at
-- which one may.
local function startable(name, l)
  local free = 1e9
  if l.slots > 0 then
    free = l.slots - call('SCARD', P .. 'slots:' .. name)
  end
  if free > 0 and l.every > 0 then
    local ahead = NOW_US + (l.burst - 1) * l.every - math.max(l.tat, NOW_US)
    if ahead < 0 then
      return 0, math.ceil((NOW_US - ahead) / 1000)
    end
    free = math.min(free, math.floor(ahead / l.every) + 1)
  end
  return free
end

-- Sets when to look at the limit again, if jobs wait for it. While all slots are taken no time is
-- needed: the end of an attempt serves the limit.
local function set_gate(name, l)
  local free, at = startable(name, l)
  if call('EXISTS', P .. 'limited:' .. name) == 0 or (free <= 0 and not at) then
    call('ZREM', P .. 'gates', name)
  elseif at then
    call('ZADD', P .. 'gates', math.max(at, NOW_MS + GATE_INTERVAL_MS), name)
  else
    call('ZADD', P .. 'gates', 'LT', NOW_MS + GATE_RETRY_MS, name)
  end
end

local function park_for(id, r, reason)
  call('HSET', P .. 'job:' .. id, 'park', reason)
  call('ZADD', P .. 'park:' .. reason, r.due, id)
end

local function park_by_limit(id, r, name, l)
  local place = r.queue .. ':' .. r.prio
  park_for(id, r, 'limit:' .. place .. ':' .. name)
  call('SADD', P .. 'limited:' .. name, place)
  if not l.kept then
    call('HSET', P .. 'limit:' .. name, 'slots', l.slots, 'at', r.at)
    l.kept = true
  end
end

-- The limit besides this one that keeps a waiting job from starting now, nil if none does.
local function other_obstacle(name, id, r)
  local a = call('HMGET', P .. 'job:' .. id, 'task', 'cl', 'at')
  r.cl, r.at = a[2], a[3]
  local other, l = key_of(r)
  if other == name then
    other = 'task:' .. a[1]
    l = find_limit(other)
  else
    l = other and key_limit(other, r)
  end
  if l and startable(other, l) <= 0 then
    return other, l
  end
end

-- Enqueues the first job of a place that may start, and returns its record. A job that another
-- limit keeps from starting waits for that one from now on; of a key's jobs only one does
-- (`moved`), or all would move there and back.
local function enqueue_waiter(name, place, moved)
  local key = P .. 'park:limit:' .. place .. ':' .. name
  local ids = call('ZRANGE', key, 0, WAITERS_READ - 1)
  for i = 1, #ids do
    local id = ids[i]
    local r = read_record(id)
    local other, l
    if r.state == 'waiting' then
      other, l = other_obstacle(name, id, r)
    end
    if not other or not moved[name] then
      call('ZREM', key, id)
      if other then
        park_by_limit(id, r, other, l)
        set_gate(other, l)
        moved[name] = name == key_of(r)
      elseif r.state == 'waiting' then
        requeue(id, r)
        return r
      end
    end
  end
end

-- Enqueues as many of the waiting jobs as may start now, at most `max_jobs`: by priority, and
-- within each the earliest due first. Jobs of paused queues take no other's turn.
local function serve(name, max_jobs)
  local l = find_limit(name)
  if not l or not l.kept then
    return
  end
  local places = call('SMEMBERS', P .. 'limited:' .. name)
  local left = #places > 0 and math.min(max_jobs, (startable(name, l))) or 0
  local waiting, from, looked, moved = #places, l.turn, 0, {}
  while left > 0 and #places > 0 and looked < MAX_SERVED do
    looked = looked + 1
    l.turn = l.turn + 1
    local order, turns = priority_order(l.turn)
    local at
    for i = 1, 3 do
      for j = 0, #places - 1 do
        local k = (turns + j) % #places + 1
        if not at and string.match(places[k], '[^:]*$') == order[i] then
          at = k
        end
      end
    end
    local place = places[at]
    local r = enqueue_waiter(name, place, moved)
    if r then
      left = is_paused(r.queue) and left or left - 1
    else
      table.remove(places, at)
    end
    if call('EXISTS', P .. 'park:limit:' .. place .. ':' .. name) == 0 then
      call('SREM', P .. 'limited:' .. name, place)
      waiting = waiting - 1
      if r then
        table.remove(places, at)
      end
    end
  end
  if l.turn > from then
    call('HSET', P .. 'limit:' .. name, 'turn', l.turn)
  end
  set_gate(name, l)
  local over = l.slots == 0 and l.every == 0
    or string.sub(name, 1, 4) == 'key:' and call('SCARD', P .. 'slots:' .. name) == 0
  if waiting == 0 and over then
    call('DEL', P .. 'limit:' .. name)
    limits[name] = nil
  end
end

-- Serves the limits whose time in `gates` has come.
local function open_gates(max_limits)
  local due = call('ZRANGEBYSCORE', P .. 'gates', '-inf', NOW_MS, 'LIMIT', 0, max_limits)
  for i = 1, #due do
    call('ZREM', P .. 'gates', due[i])
    serve(due[i], MAX_SERVED)
  end
end
