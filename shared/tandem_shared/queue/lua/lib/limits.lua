-- The limits of tasks: how many attempts run at once, and how many start in a time. What one keeps
-- from starting waits in `park:limit:<queue>:<priority>:<task>`, by due time; `limited:<task>`
-- names these places. They come back by `serve`: one job for each slot that is given back, and when
-- `gates`, which says when to look at a task again, is due.

local PACE = 50 -- ms between two looks at one task, at least; a rate's burst covers them
local AGAIN = 1000 -- ms after which others are called if those that were did not start

-- Every 4th turn has normal first and every 16th low first, so that nothing starves. Each kind of
-- turn counts on its own: else, of two queues, one would have all the turns that have low first.
local NORMAL_FIRST, LOW_FIRST = { 'normal', 'high', 'low' }, { 'low', 'normal', 'high' }
local function ranks(turn)
  local fourths, sixteenths = math.floor(turn / 4), math.floor(turn / 16)
  if turn % 16 == 0 then
    return LOW_FIRST, sixteenths
  elseif turn % 4 == 0 then
    return NORMAL_FIRST, fourths - sixteenths
  end
  return HIGH_FIRST, turn - fourths
end

-- What limits a task; false if nothing does. `tat` (GCRA): the µs at which a start would be exactly
-- on time. One that is further off than starts can bring it is of another rate, or from before the
-- clock stepped back.
local limits = {}
local function limit(task)
  local l = limits[task]
  if l == nil then
    local a = call('HMGET', P .. 'limit:' .. task, 'slots', 'every', 'burst', 'tat', 'turn')
    l = a[1] and {
      slots = tonumber(a[1]), every = tonumber(a[2]), burst = tonumber(a[3]), tat = tonumber(a[4] or 0),
      turn = tonumber(a[5] or 0),
    } or false
    local latest = l and US + l.burst * l.every
    if l and l.tat > latest then
      l.tat = latest
      call('HSET', P .. 'limit:' .. task, 'tat', int(latest))
    end
    limits[task] = l
  end
  return l
end

-- How many attempts of the task may start now and, if it is only time that is in the way, the ms at
-- which one may.
local function room(task, l)
  local free = 1e9
  if l.slots > 0 then
    free = l.slots - call('SCARD', P .. 'slots:' .. task)
  end
  if free > 0 and l.every > 0 then
    local ahead = US + (l.burst - 1) * l.every - math.max(l.tat, US)
    if ahead < 0 then
      return 0, math.ceil((US - ahead) / 1000)
    end
    free = math.min(free, math.floor(ahead / l.every) + 1)
  end
  return free
end

local function full(task)
  local l = limit(task)
  return l and room(task, l) <= 0
end

-- Sets down when to look at the task again, if anything waits for it. A slot that is given back
-- needs no time.
local function watch(task, l)
  local free, at = room(task, l)
  if call('EXISTS', P .. 'limited:' .. task) == 0 or (free <= 0 and not at) then
    call('ZREM', P .. 'gates', task)
  elseif at then
    call('ZADD', P .. 'gates', math.max(at, MS + PACE), task)
  else
    call('ZADD', P .. 'gates', 'LT', MS + AGAIN, task)
  end
end

-- Lines up as many of the jobs that wait for the task as may start now, at most `most`: by
-- priority, in each the one that is due first.
local function serve(task, most)
  local l = limit(task)
  if not l then
    return
  end
  local places = call('SMEMBERS', P .. 'limited:' .. task)
  local left = #places > 0 and math.min(most, (room(task, l))) or 0
  local from = l.turn
  while left > 0 and #places > 0 do
    l.turn = l.turn + 1
    local order, turns = ranks(l.turn)
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
    local r = id and read(id)
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
  watch(task, l)
  if #places == 0 and l.slots == 0 and l.every == 0 then
    call('DEL', P .. 'limit:' .. task) -- the limit was lifted, and the last one that waited for it is gone
  end
end

-- Serves the tasks whose time has come.
local function open_gates(most)
  local due = call('ZRANGEBYSCORE', P .. 'gates', '-inf', MS, 'LIMIT', 0, most)
  for i = 1, #due do
    call('ZREM', P .. 'gates', due[i])
    serve(due[i], 100)
  end
end
