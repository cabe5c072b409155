-- The limits of tasks: how many attempts run at once, and how many start in a period.
--
-- A job that a limit keeps from starting waits in `park:limit:<queue>:<priority>:<task>`, by due
-- time; `limited:<task>` lists these places. `serve` brings jobs back: one for each slot that is
-- given back, and some whenever the task's time in `gates` has come.

local GATE_INTERVAL_MS = 50 -- at least, between two looks at a task; a rate's burst covers it
local GATE_RETRY_MS = 1000 -- then further jobs are woken, should the woken ones not have started

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

-- The limits of a task, false if it has none. `tat` (GCRA's theoretical arrival time, µs) is when
-- the next start would be exactly on time. A later one than starts can cause comes from an
-- earlier rate, or from before the clock stepped back, and is capped.
local limits_by_task = {}
local function limits_of(task)
  local l = limits_by_task[task]
  if l == nil then
    local a = call('HMGET', P .. 'limit:' .. task, 'slots', 'every', 'burst', 'tat', 'turn')
    l = a[1] and {
      slots = tonumber(a[1]), every = tonumber(a[2]), burst = tonumber(a[3]),
      tat = tonumber(a[4] or 0), turn = tonumber(a[5] or 0),
    } or false
    local latest = l and NOW_US + l.burst * l.every
    if l and l.tat > latest then
      l.tat = latest
      call('HSET', P .. 'limit:' .. task, 'tat', int(latest))
    end
    limits_by_task[task] = l
  end
  return l
end

-- How many attempts of the task may start now; if only the rate forbids one, also the ms at which
-- one may.
local function startable(task, l)
  local free = 1e9
  if l.slots > 0 then
    free = l.slots - call('SCARD', P .. 'slots:' .. task)
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

local function at_limit(task)
  local l = limits_of(task)
  return l and startable(task, l) <= 0
end

-- Sets when to look at the task again, if jobs wait for it. While all slots are taken no time is
-- needed: the end of an attempt serves the task.
local function set_gate(task, l)
  local free, at = startable(task, l)
  if call('EXISTS', P .. 'limited:' .. task) == 0 or (free <= 0 and not at) then
    call('ZREM', P .. 'gates', task)
  elseif at then
    call('ZADD', P .. 'gates', math.max(at, NOW_MS + GATE_INTERVAL_MS), task)
  else
    call('ZADD', P .. 'gates', 'LT', NOW_MS + GATE_RETRY_MS, task)
  end
end

-- Enqueues as many waiting jobs of the task as may start now, at most `max_jobs`: by priority, and
-- within each the earliest due first.
local function serve(task, max_jobs)
  local l = limits_of(task)
  if not l then
    return
  end
  local places = call('SMEMBERS', P .. 'limited:' .. task)
  local left = #places > 0 and math.min(max_jobs, (startable(task, l))) or 0
  local from = l.turn
  while left > 0 and #places > 0 do
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
    local place = P .. 'park:limit:' .. places[at] .. ':' .. task
    local id = call('ZPOPMIN', place)[1]
    local r = id and read_record(id)
    if r and r.state == 'waiting' then
      requeue(id, r)
      left = left - 1
    end
    if call('EXISTS', place) == 0 then
      call('SREM', P .. 'limited:' .. task, places[at])
      table.remove(places, at)
    end
  end
  if l.turn > from then
    call('HSET', P .. 'limit:' .. task, 'turn', l.turn)
  end
  set_gate(task, l)
  if #places == 0 and l.slots == 0 and l.every == 0 then
    call('DEL', P .. 'limit:' .. task) -- the limit was lifted, and its last waiting job has left
  end
end

-- Serves the tasks whose time in `gates` has come.
local function open_gates(max_tasks)
  local due = call('ZRANGEBYSCORE', P .. 'gates', '-inf', NOW_MS, 'LIMIT', 0, max_tasks)
  for i = 1, #due do
    call('ZREM', P .. 'gates', due[i])
    serve(due[i], 100)
  end
end
