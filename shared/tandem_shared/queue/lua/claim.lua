-- claim(worker, call number, slots, free slots, running, started, max bytes, catalogue, queues…):
-- starts up to `slots` due jobs on this worker. Those beyond the free slots are claimed ahead: they
-- start later, so only jobs without limits are. `running` attempts are held by now; those that
-- began up to the stamp `started` have started.
--
-- Returns whether the worker is known (0: register first), whether due jobs are left (2: this
-- worker can take them once an attempt of its own has ended), ms until the next due time (-1:
-- none), settled leases, then nine values per job, see `append_claimed`.

local worker, number, slots = ARGV[4], ARGV[5], tonumber(ARGV[6])
local free_slots, running = tonumber(ARGV[7]), tonumber(ARGV[8])
local free_bytes, catalogue = tonumber(ARGV[10]), ARGV[11]
local QUEUES = 12 -- the first queue in ARGV
local MIN_LOOKED_AT = 200 -- jobs, if that many are due
local DUE_JOBS = 200 -- enqueued per place
local MAX_REASONS = 8 -- per queue

local me = P .. 'worker:' .. worker
local my = call('HMGET', me, 'call', 'held', 'since', 'suspect', 'tasks', 'beside', 'last', 'begun')
local last_call, last_held, last_stamp, my_suspect = my[1], my[2], my[3], my[4]
local has_started = math.max(tonumber(ARGV[9]), tonumber(my[8] or 0))
if my[5] ~= catalogue or call('EXISTS', P .. 'tasks:' .. catalogue) == 0 then
  return { 0, 0, -1, 0 }
end

local settled, calm, turn = process_due()
local queues, serves, places = {}, {}, {}
for i = QUEUES, #ARGV do
  if not is_paused(ARGV[i]) then
    queues[#queues + 1] = ARGV[i]
    serves[ARGV[i]] = true
  end
end
for _, prio in ipairs(HIGH_FIRST) do
  for i = 1, #queues do
    places[#places + 1] = queues[i] .. ':' .. prio
  end
end

-- When the first job of these places falls due, ms; -1 without one.
local function next_time()
  local first = -1
  local times = #places > 0 and call('ZMSCORE', P .. 'agenda', unpack(places)) or {}
  for i = 1, #times do
    local at = tonumber(times[i] or nil)
    if at and (first < 0 or at < first) then
      first = at
    end
  end
  return first
end

local next_due = next_time()
if next_due >= 0 and next_due <= NOW_MS then
  for i = 1, #places do
    enqueue_due(places[i], DUE_JOBS)
  end
  next_due = next_time()
end

local out, leases, started, looked_at = {}, {}, {}, 0
local more, blocked = false, false
local beside = my[6] == '1' -- the suspect that this worker runs has not been alone all the time
last_began = tonumber(my[7] or 0)
local left = slots

local versions = {}
local function knows(task)
  if versions[task] == nil then
    versions[task] = tonumber(call('HGET', P .. 'tasks:' .. catalogue, task) or nil) or false
  end
  return versions[task]
end

local function start(id, r)
  start_attempt(id, r, worker, leases, out)
  started[#started + 1] = id
  if #started <= free_slots then
    has_started = tonumber(r.v)
  end
  if is_suspect(r) then
    my_suspect, beside = id, running + #started > 1
  else
    beside = true
  end
  free_bytes = free_bytes - #r.payload
  left = left - 1
end

-- Whether the reply has room for the job; the first job always fits. A job that is claimed ahead
-- must not hold a slot or use up a rate while it waits, nor be one that was lost that way before.
local function fits(r)
  local direct = #started < free_slots or not (r.unstarted or next(limits_of(r)))
  return direct and (#started == 0 or #r.payload <= free_bytes)
end

-- An older call that arrived late: nobody waits for its reply.
if last_call and tonumber(number) < tonumber(last_call) then
  commit()
  return { 1, 0, -1, settled }
end

-- A repeat: the reply was lost. Returns what that call started and this worker still holds.
if last_call == number then
  for id in string.gmatch(last_held or '', '%S+') do
    local r = read_full(id)
    local owner = r.token and string.match(r.token, '%.(.*)$')
    if r.state == 'running' and owner == worker and tonumber(r.began) >= tonumber(last_stamp) then
      append_claimed(out, id, r.token, r)
    end
  end
  commit()
  return { 1, 1, 0, settled, unpack(out) }
end

-- The losses of the suspect that this worker runs, nil without one. It runs one at a time, so that
-- another loss takes no other suspect with it.
local function suspect_losses()
  if not my_suspect then
    return nil
  end
  local r = call('HMGET', P .. 'job:' .. my_suspect, 'state', 'token', 'losses')
  local mine = r[1] == 'running' and r[2] and string.match(r[2], '%.(.*)$') == worker
  return mine and tonumber(r[3]) or nil
end

-- Whether a job may start as far as it is a suspect. One with a third loss runs alone.
local function may_start_suspect(r)
  local alone = tonumber(r.losses or 0) >= 3
  return not is_suspect(r) or (not suspect_losses() and not (alone and running + #started > 0))
end

-- Starts a job, or parks it for the reason that keeps it from starting. Returns whether it started.
local function take_from(place, id, r)
  local reason, limit = obstacle(r, knows)
  call('ZREM', place, id)
  if reason then
    park(id, r, reason, limit)
  else
    start(id, r)
  end
  return not reason
end

local function has_expired(id, r)
  return expires_by(r, NOW_MS) and (not calm or fail_if_expired(id, r))
end

-- The first suspect of the worker's queues that may start now. While one waits to run alone, a
-- worker that is free takes it, and one that is not takes no further jobs until it is: one worker
-- at a time, which `alone` of `clock` names.
local function take_suspect(queue)
  local place = P .. 'suspects:' .. queue
  local ids = call('ZRANGE', place, 0, 31)
  for i = 1, #ids do
    local r = read_full(ids[i])
    if r.state ~= 'queued' then
      call('ZREM', place, ids[i])
    elseif has_expired(ids[i], r) then
      blocked = not calm
    elseif may_start_suspect(r) then
      if take_from(place, ids[i], r) then
        break
      end
    elseif tonumber(r.losses) >= 3 then
      local one = call('HGET', P .. 'clock', 'alone')
      if not one or one == worker or call('EXISTS', P .. 'worker:' .. one) == 0 then
        call('HSET', P .. 'clock', 'alone', worker)
        left, blocked = 0, true
      end
      break
    end
  end
  if call('EXISTS', place) == 0 then
    call('SREM', P .. 'suspected', queue)
  end
end

local function members_among(key)
  local found, flags = {}, #queues > 0 and call('SMISMEMBER', P .. key, unpack(queues)) or {}
  for i = 1, #flags do
    if flags[i] == 1 then
      found[#found + 1] = queues[i]
    end
  end
  return found
end

local runs_alone = (suspect_losses() or 0) >= 3
if runs_alone then
  left = 0
end
for _, queue in ipairs(members_among('suspected')) do
  if left > 0 and free_slots > 0 and not suspect_losses() then
    take_suspect(queue)
  end
end
if (suspect_losses() or 0) >= 3 then
  left, blocked = 0, true
  if not runs_alone and call('HGET', P .. 'clock', 'alone') == worker then
    call('HDEL', P .. 'clock', 'alone')
  end
end

-- Whether this worker can run jobs that were parked for a worker with more tasks or formats.
local function lifts(reason)
  local version, task = string.match(reason, '^task:[^:]*:(%d+):(.*)$')
  if version then
    return is_new_enough(task, knows(task), tonumber(version))
  end
  return tonumber(string.match(reason, '^format:[^:]*:(%d+)$')) <= RECORD_FORMAT
end

local function take_parked(queue, reason)
  local place = P .. 'park:' .. reason
  local ids = call('ZRANGE', place, 0, slots - 1)
  for j = 1, #ids do
    local id = ids[j]
    local r = read_full(id)
    if r.state ~= 'waiting' then
      call('ZREM', place, id)
    elseif is_suspect(r) then
      call('ZREM', place, id)
      requeue(id, r) -- among the suspects
      more = true
    elseif left > 0 and fits(r) and not has_expired(id, r) then
      take_from(place, id, r)
    end
  end
  if call('EXISTS', place) == 0 then
    call('SREM', P .. 'parked:' .. queue, reason)
  else
    more = true
  end
end

-- The reasons to look at: all, or if they are many, those of this worker's versions and some more,
-- so that the cost of a claim does not grow with them.
local function reasons_of(queue)
  local key = P .. 'parked:' .. queue
  if call('SCARD', key) <= MAX_REASONS then
    return call('SMEMBERS', key)
  end
  local reasons = call('SRANDMEMBER', key, MAX_REASONS)
  local mine = call('HGETALL', P .. 'tasks:' .. catalogue)
  for i = 1, #mine, 2 do
    local reason = 'task:' .. queue .. ':' .. mine[i + 1] .. ':' .. mine[i]
    if call('SISMEMBER', key, reason) == 1 then
      reasons[#reasons + 1] = reason
    end
  end
  return reasons
end

for _, queue in ipairs(members_among('parked')) do
  local reasons = reasons_of(queue)
  for i = 1, #reasons do
    if left > 0 and lifts(reasons[i]) then
      take_parked(queue, reasons[i])
    end
  end
  if call('EXISTS', P .. 'parked:' .. queue) == 0 then
    call('SREM', P .. 'parked', queue)
  end
end

-- The heads of the queues, read some at a time. Jobs that start are removed at the end, together.
local heads = { high = {}, normal = {}, low = {} }
local function head(queue, prio)
  local h = heads[prio][queue]
  if not h then
    h = { key = P .. 'q:' .. queue .. ':' .. prio, ids = {}, at = 1, from = 0, gone = {} }
    heads[prio][queue] = h
  end
  if h.at > #h.ids and not h.dry then
    h.ids = call('ZRANGE', h.key, h.from, h.from + slots - 1)
    h.from, h.at = h.from + #h.ids, 1
    h.dry = #h.ids < slots
  end
  return h.at <= #h.ids and h or nil
end

local function pick(slot)
  local order, turns = priority_order(slot)
  for i = 1, 3 do
    for j = 0, #queues - 1 do
      local h = head(queues[(turns + j) % #queues + 1], order[i])
      if h then
        return h
      end
    end
  end
  return nil
end

while left > 0 and looked_at < math.max(4 * slots, MIN_LOOKED_AT) do
  local h = pick(turn + #started + 1)
  if not h then
    break
  end
  local id = h.ids[h.at]
  local r = read_full(id)
  looked_at = looked_at + 1
  local queued, over = r.state == 'queued', expires_by(r, NOW_MS)
  local reason, limit
  if queued and not over then
    reason, limit = obstacle(r, knows)
  end
  if not queued then
    h.gone[#h.gone + 1] = id
  elseif over and calm then
    fail_if_expired(id, r)
    h.from = h.from - 1 -- it has left the queue, so later jobs have moved up
  elseif reason then
    call('ZREM', h.key, id)
    h.from = h.from - 1
    park(id, r, reason, limit)
  elseif over then
    blocked = true -- until it may expire
  elseif fits(r) then
    start(id, r)
    h.gone[#h.gone + 1] = id
  else
    blocked = #started >= free_slots
    break
  end
  h.at = h.at + 1
end

for _, prio in ipairs(HIGH_FIRST) do
  for _, h in pairs(heads[prio]) do
    if #h.gone > 0 then
      call('ZREM', h.key, unpack(h.gone))
    end
  end
end
for i = 1, #queues do
  more = ring_if_due(queues[i]) or more
end
if my_suspect and (my_suspect ~= my[4] or beside ~= (my[6] == '1')) then
  call('HSET', me, 'suspect', my_suspect, 'beside', beside and '1' or '0')
end
call('HSET', me, 'call', number, 'held', table.concat(started, ' '), 'since', NOW_STAMP,
  'begun', int(has_started), 'last', int(last_began))
if #started > 0 then
  call('ZADD', P .. 'leases', unpack(leases))
  call('HINCRBY', P .. 'clock', 'turn', #started)
end

for name in pairs(touched) do
  serve(name, MAX_SERVED)
end
-- Wakes for the gates of limits that jobs of these queues wait for; others' are looked at no
-- further than their first few.
local gates = call('ZRANGE', P .. 'gates', 0, 15, 'WITHSCORES')
for i = 1, #gates, 2 do
  local mine = i == 31
  for _, place in ipairs(call('SMEMBERS', P .. 'limited:' .. gates[i])) do
    mine = mine or serves[string.match(place, '^[^:]*')]
  end
  if mine then
    local at = tonumber(gates[i + 1])
    next_due = next_due < 0 and at or math.min(next_due, at)
    break
  end
end
commit()
next_due = next_due < 0 and -1 or math.max(0, next_due - NOW_MS)
more = blocked and 2 or more and 1 or 0
return { 1, more, next_due, settled, unpack(out) }
