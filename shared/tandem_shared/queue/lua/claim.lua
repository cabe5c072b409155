-- claim(worker, call number, slots, max bytes, catalogue, queues…): starts up to `slots` due jobs
-- on this worker. Returns whether the worker is known (0: register first), whether due jobs are
-- left, ms until the next due time (-1: none), settled leases, whether jobs of plain arq clients
-- wait, then nine values per job, see `append_claimed`.

local worker, number, slots = ARGV[4], ARGV[5], tonumber(ARGV[6])
local free_bytes, catalogue = tonumber(ARGV[7]), ARGV[8]
local me = P .. 'worker:' .. worker
local my = call('HMGET', me, 'call', 'held', 'since', 'suspect', 'tasks')
local last_call, last_held, last_stamp, my_suspect = my[1], my[2], my[3], my[4]
if my[5] ~= catalogue or call('EXISTS', P .. 'tasks:' .. catalogue) == 0 then
  return { 0, 0, -1, 0, 0 }
end

local settled, turn = process_due()
local queues, serves = {}, {}
for i = 9, #ARGV do
  if not is_paused(ARGV[i]) then
    queues[#queues + 1] = ARGV[i]
    serves[ARGV[i]] = true
  end
end
local out, leases, started, looked_at, more = {}, {}, {}, 0, false
local free_slots = slots

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
  if is_suspect(r) then
    my_suspect = id
    call('HSET', me, 'suspect', id)
  end
  free_bytes = free_bytes - #r.payload
  free_slots = free_slots - 1
end

-- Whether the reply has room for the job; the first job always fits.
local function fits(r)
  return #started == 0 or #r.payload <= free_bytes
end

-- An older call that arrived late: nobody waits for its reply.
if last_call and tonumber(number) < tonumber(last_call) then
  commit()
  return { 1, 0, -1, settled, 0 }
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
  return { 1, 1, 0, settled, 0, unpack(out) }
end

-- A worker runs one suspect at a time, so that a third loss takes no other jobs with it.
local function holds_suspect()
  if not my_suspect then
    return false
  end
  local r = call('HMGET', P .. 'job:' .. my_suspect, 'state', 'token')
  return r[1] == 'running' and r[2] and string.match(r[2], '%.(.*)$') == worker
end

-- Starts a job, or parks it for the reason that keeps it from starting. Returns whether it started.
local function take_from(place, id, r)
  local reason = obstacle(r, knows)
  call('ZREM', place, id)
  if reason then
    park(id, r, reason)
  else
    start(id, r)
  end
  return not reason
end

local suspects = P .. 'suspects'
if call('EXISTS', suspects) == 1 and not holds_suspect() then
  local ids = call('ZRANGE', suspects, 0, 255)
  for i = 1, #ids do
    local id = ids[i]
    local r = read_full(id)
    if r.state ~= 'queued' then
      call('ZREM', suspects, id)
    elseif serves[r.queue] and not fail_if_expired(id, r) and take_from(suspects, id, r) then
      break
    end
  end
end

-- Whether this worker can run jobs that were parked for a worker with more tasks or formats.
local function lifts(reason)
  local queue, version, task = string.match(reason, '^task:([^:]*):(%d+):(.*)$')
  if queue then
    return serves[queue] and is_new_enough(task, knows(task), tonumber(version))
  end
  local served, format = string.match(reason, '^format:([^:]*):(%d+)$')
  return serves[served] and tonumber(format) <= RECORD_FORMAT
end

local reasons = call('SMEMBERS', P .. 'parked')
for i = 1, #reasons do
  if free_slots > 0 and lifts(reasons[i]) then
    local place = P .. 'park:' .. reasons[i]
    local ids = call('ZRANGE', place, 0, slots - 1)
    for j = 1, #ids do
      local id = ids[j]
      local r = read_full(id)
      if r.state ~= 'waiting' then
        call('ZREM', place, id)
      elseif free_slots > 0 and fits(r) and not fail_if_expired(id, r)
        and not (is_suspect(r) and holds_suspect()) then
        take_from(place, id, r)
      end
    end
    if call('EXISTS', place) == 0 then
      call('SREM', P .. 'parked', reasons[i])
    else
      more = true
    end
  end
end

-- The heads of the queues, read `slots` at a time. Jobs that start are removed at the end,
-- together.
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

while free_slots > 0 and looked_at < 4 * slots do
  local h = pick(turn + #started + 1)
  if not h then
    break
  end
  local id = h.ids[h.at]
  local r = read_full(id)
  looked_at = looked_at + 1
  local reason = r.state == 'queued' and obstacle(r, knows)
  if r.state ~= 'queued' then
    h.gone[#h.gone + 1] = id
  elseif fail_if_expired(id, r) then
    h.from = h.from - 1 -- it has left the queue, so later jobs have moved up
  elseif reason then
    call('ZREM', h.key, id)
    h.from = h.from - 1
    park(id, r, reason)
  elseif fits(r) then
    start(id, r)
    h.gone[#h.gone + 1] = id
  else
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
call('HSET', me, 'call', number, 'held', table.concat(started, ' '), 'since', NOW_STAMP)
if #started > 0 then
  call('ZADD', P .. 'leases', unpack(leases))
  call('HINCRBY', P .. 'clock', 'turn', #started)
end

for task in pairs(touched_tasks) do
  set_gate(task, limits_of(task))
end
local next_due = -1
for _, times in ipairs({ 'later', 'gates' }) do
  local first = call('ZRANGE', P .. times, 0, 0, 'WITHSCORES')
  if first[2] then
    local left = math.max(0, tonumber(first[2]) - NOW_MS)
    next_due = next_due < 0 and left or math.min(next_due, left)
  end
end
commit()
return { 1, more and 1 or 0, next_due, settled, call('EXISTS', 'arq:queue'), unpack(out) }
