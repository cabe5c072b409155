-- claim(worker, call number, slots, bytes, catalogue, queues…): up to `slots` due jobs start on
-- this worker. Returns known (0: register first), more (due jobs are left), ms until the next due
-- time (-1: none), settled leases, foreign (jobs of plain arq clients wait), then nine values a
-- job, see admit.lua.

local worker, number, slots, bytes, catalogue = ARGV[4], ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7]), ARGV[8]
local me = P .. 'worker:' .. worker
local my = call('HMGET', me, 'call', 'held', 'since', 'suspect', 'tasks')
if my[5] ~= catalogue or call('EXISTS', P .. 'tasks:' .. catalogue) == 0 then
  return { 0, 0, -1, 0, 0 }
end

local settled, turn = keep_up()
local queues, serves = {}, {}
for i = 9, #ARGV do
  if not paused(ARGV[i]) then
    queues[#queues + 1] = ARGV[i]
    serves[ARGV[i]] = true
  end
end
local out, leases, taken, looked, more = {}, {}, {}, 0, false
local free = slots

local versions = {}
local function knows(task)
  if versions[task] == nil then
    versions[task] = tonumber(call('HGET', P .. 'tasks:' .. catalogue, task) or nil) or false
  end
  return versions[task]
end

local function start(id, r)
  admit(id, r, worker, leases, out)
  taken[#taken + 1] = id
  if suspect(r) then
    my[4] = id
    call('HSET', me, 'suspect', id)
  end
  bytes = bytes - #r.payload
  free = free - 1
end

-- A reply has room for the job; the first one always has.
local function fits(r)
  return #taken == 0 or #r.payload <= bytes
end

-- A call before the last one, late on its way: nobody waits for what it would take.
if my[1] and tonumber(number) < tonumber(my[1]) then
  commit()
  return { 1, 0, -1, settled, 0 }
end

-- The same call again: its reply was lost. What it took and still holds is what it gets.
if my[1] == number then
  for id in string.gmatch(my[2] or '', '%S+') do
    local r = read_whole(id)
    local owner = r.token and string.match(r.token, '%.(.*)$')
    if r.state == 'running' and owner == worker and tonumber(r.began) >= tonumber(my[3]) then
      local n = #out
      out[n + 1], out[n + 2], out[n + 3], out[n + 4] = id, r.token, r.attempt, r.max
      out[n + 5], out[n + 6], out[n + 7], out[n + 8], out[n + 9] = r.task, r.tenant, r.payload, r.opts, r.due
    end
  end
  commit()
  return { 1, 1, 0, settled, 0, unpack(out) }
end

-- Suspects run one at a time here, so that a third loss takes no batch with it.
local function holds_suspect()
  if not my[4] then
    return false
  end
  local r = call('HMGET', P .. 'job:' .. my[4], 'state', 'token')
  return r[1] == 'running' and r[2] and string.match(r[2], '%.(.*)$') == worker
end

if call('EXISTS', P .. 'suspects') == 1 and not holds_suspect() then
  local suspects = call('ZRANGE', P .. 'suspects', 0, 255)
  for i = 1, #suspects do
    local id = suspects[i]
    local r = read_whole(id)
    if r.state ~= 'queued' then
      call('ZREM', P .. 'suspects', id)
    elseif serves[r.queue] and not expired(id, r) then
      local why = obstacle(r, knows)
      call('ZREM', P .. 'suspects', id)
      if why then
        park(id, r, why)
      else
        start(id, r)
        break
      end
    end
  end
end

-- Jobs that were set aside because some other worker could not run them.
local function lifted(why)
  local queue, version, task = string.match(why, '^task:([^:]*):(%d+):(.*)$')
  if queue then
    return serves[queue] and (knows(task) or 0) >= tonumber(version)
  end
  local served, format = string.match(why, '^format:([^:]*):(%d+)$')
  return serves[served] and tonumber(format) <= RECORD_FORMAT
end

local aside = call('SMEMBERS', P .. 'parked')
for i = 1, #aside do
  if free > 0 and lifted(aside[i]) then
    local place = P .. 'park:' .. aside[i]
    local ids = call('ZRANGE', place, 0, slots - 1)
    for j = 1, #ids do
      local id = ids[j]
      local r = read_whole(id)
      if r.state ~= 'waiting' then
        call('ZREM', place, id)
      elseif free > 0 and fits(r) and not expired(id, r) and not (suspect(r) and holds_suspect()) then
        local why = obstacle(r, knows)
        call('ZREM', place, id)
        if why then
          park(id, r, why)
        else
          start(id, r)
        end
      end
    end
    if call('EXISTS', place) == 0 then
      call('SREM', P .. 'parked', aside[i])
    else
      more = true
    end
  end
end

-- The heads of the queues, read in portions. What starts is taken out of them at the end, all at
-- once.
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
  local order, turns = ranks(slot)
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

while free > 0 and looked < 4 * slots do
  local h = pick(turn + #taken + 1)
  if not h then
    break
  end
  local id = h.ids[h.at]
  local r = read_whole(id)
  looked = looked + 1
  local why = r.state == 'queued' and obstacle(r, knows)
  if r.state ~= 'queued' then
    h.gone[#h.gone + 1] = id
  elseif expired(id, r) then
    h.from = h.from - 1
  elseif why then
    call('ZREM', h.key, id)
    h.from = h.from - 1
    park(id, r, why)
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
  more = ring_due(queues[i]) or more
end
call('HSET', me, 'call', number, 'held', table.concat(taken, ' '), 'since', NOW)
if #taken > 0 then
  call('ZADD', P .. 'leases', unpack(leases))
  call('HINCRBY', P .. 'clock', 'turn', #taken)
end

for task in pairs(touched) do
  watch(task, limit(task))
end
local next_due = -1
for _, times in ipairs({ 'later', 'gates' }) do
  local head = call('ZRANGE', P .. times, 0, 0, 'WITHSCORES')
  if head[2] then
    local left = math.max(0, tonumber(head[2]) - MS)
    next_due = next_due < 0 and left or math.min(next_due, left)
  end
end
commit()
return { 1, more and 1 or 0, next_due, settled, call('EXISTS', 'arq:queue'), unpack(out) }
