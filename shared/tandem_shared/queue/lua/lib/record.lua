-- What every transition shares: the clock, the stamps, the one place where a state changes, and
-- what follows from it. `TRANSITIONS`, `FINAL` and `RECORD_FORMAT` stand before this text and come from
-- shared/tandem_shared/jobs/record.py; `CLOCK()` is Redis TIME. Arguments of every script: KEYS[1]
-- the prefix with the shard's hash tag, ARGV[1..3] as below, then its own from 4 on.

local P = KEYS[1]
local LEASE, KEEP, GRACE = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]) -- ms
local ALIVE = math.max(3 * LEASE, 60000) -- ms for which a worker that says nothing is remembered
local call = redis.call

local now = CLOCK()
local US = now[1] * 1000000 + now[2]
local MS = math.floor(US / 1000)

-- Lua writes large numbers as 1.7e+15 when it joins them to text, and Redis takes long to write a
-- number for a command.
local function int(number)
  return string.format('%.0f', number)
end
local NOW, LEASE_END, FORM = int(US), int(MS + LEASE), int(RECORD_FORMAT)

-- The next version of a record, as text: now, or just above its last one where the clock has not
-- moved on or stepped back.
local function stamp(r)
  local last = tonumber(r.v or 0)
  if r.o then
    last = math.max(last, tonumber(r.o))
  end
  return US > last and NOW or int(last + 1)
end

-- What a transition needs to know of a record. Redis looks for a field from the first one on, so
-- what few records have is looked for only where the number of fields says that there is more than
-- what all have: 14 as it is submitted, two more as an attempt begins (began, token), three more as
-- it succeeds (attempts, result, ended). To end a job (`ends`) one need not know where it would
-- stand again.
local SUBMITTED, BEGUN, SUCCEEDED = 14, 16, 19
local COMMON = { [SUBMITTED] = true, [BEGUN] = true, [SUCCEEDED] = true }

local function read(id, ends)
  local job = P .. 'job:' .. id
  local many = call('HLEN', job)
  if COMMON[many] then
    local a = ends and call('HMGET', job, 'state', 'v', 'attempt', 'queue', 'token', 'began')
      or call('HMGET', job, 'state', 'v', 'attempt', 'queue', 'token', 'began', 'prio', 'due', 'tenant', 'max')
    if many == (a[1] == 'succeeded' and SUCCEEDED or a[5] and BEGUN or SUBMITTED) then
      return {
        state = a[1], v = a[2], attempt = a[3], queue = a[4], token = a[5] or nil, began = a[6] or nil,
        prio = a[7], due = a[8], tenant = a[9], max = a[10],
      }
    end
  elseif many == 0 then
    return {}
  end
  local a = call('HMGET', job, 'state', 'queue', 'prio', 'v', 'o', 'attempt', 'max', 'token', 'due', 'began',
    'attempts', 'losses', 'cancel', 'tenant', 'ck', 'idem', 'exp', 'park', 'slot', 'sb', 'lk')
  return {
    state = a[1] or nil, queue = a[2], prio = a[3], v = a[4], o = a[5] or nil, attempt = a[6], max = a[7],
    token = a[8] or nil, due = a[9], began = a[10] or nil, attempts = a[11] or nil, losses = a[12] or nil,
    cancel = a[13] or nil, tenant = a[14], ck = a[15] or nil, idem = a[16] or nil, exp = a[17] or nil, park = a[18] or nil,
    slot = a[19] or nil, sb = a[20] or nil, lk = a[21] or nil,
  }
end

local counts, events, bells, calls = {}, {}, {}, {}

local function count(queue, state, by)
  local of = counts[queue]
  if not of then
    of = {}
    counts[queue] = of
  end
  of[state] = (of[state] or 0) + by
end

local function tell(id, r, v)
  events[#events + 1] = id .. ' ' .. r.state .. ' ' .. v .. ' ' .. r.attempt
  call('PUBLISH', P .. 'news:' .. id, r.state)
end

-- The one place where a state changes. The caller writes the record, and the place the job then
-- stands in.
local function move(id, r, to, v)
  if r.state then
    local next = TRANSITIONS[r.state]
    if not (next and next[to]) then
      error('no transition ' .. r.state .. ' -> ' .. to .. ' (' .. id .. ')')
    end
    count(r.queue, r.state, -1)
  end
  if not FINAL[to] then
    count(r.queue, to, 1)
  end
  r.state, r.v = to, v
  tell(id, r, v)
end

local function ring(queue)
  bells[queue] = true
end

local HIGH_FIRST = { 'high', 'normal', 'low' }

-- Rings the queue if it has due jobs. Returns whether it has.
local function ring_due(queue)
  for i = 1, 3 do
    if call('EXISTS', P .. 'q:' .. queue .. ':' .. HIGH_FIRST[i]) == 1 then
      ring(queue)
      return true
    end
  end
  return false
end

-- A word for one worker: it is woken wherever it blocks, and finds it in its own bell.
local function call_worker(worker, word)
  local bell = P .. 'bell:' .. worker
  call('RPUSH', bell, word)
  call('PEXPIRE', bell, 60000)
end

-- Two workers were lost under it: it may be what killed them.
local function suspect(r)
  return r.losses and tonumber(r.losses) >= 2
end

local function line_up(id, r)
  if suspect(r) then
    call('ZADD', P .. 'suspects', r.due, id)
  else
    call('ZADD', P .. 'q:' .. r.queue .. ':' .. r.prio, r.due, id)
  end
  ring(r.queue)
end

-- From wherever it waited back among the due jobs. The caller takes it out of where it stood.
local function requeue(id, r)
  local v = stamp(r)
  move(id, r, 'queued', v)
  call('HSET', P .. 'job:' .. id, 'state', 'queued', 'v', v)
  line_up(id, r)
end

-- Waits in `later` for its time; whoever sleeps until the head's time must know of a nearer one.
local function put_off(id, r)
  local head = call('ZRANGE', P .. 'later', 0, 0, 'WITHSCORES')
  if not head[2] or tonumber(r.due) < tonumber(head[2]) then
    ring(r.queue)
  end
  call('ZADD', P .. 'later', r.due, id)
end

-- Queues that are paused ('1'), and those whose jobs are on their way back after that ('0').
local pauses
local function paused(queue)
  if not pauses then
    local flat = call('HGETALL', P .. 'paused')
    pauses = {}
    for i = 1, #flat, 2 do
      pauses[flat[i]] = flat[i + 1]
    end
  end
  return pauses[queue] == '1'
end

-- A job of a paused queue waits apart from it. The caller takes it out of the queue.
local function hold(id, r)
  local why, v = 'queue:' .. r.queue .. ':' .. r.prio, stamp(r)
  move(id, r, 'waiting', v)
  call('HSET', P .. 'job:' .. id, 'state', 'waiting', 'v', v, 'park', why)
  call('ZADD', P .. 'park:' .. why, r.due, id)
end

-- Where a record that is not final and does not run stands: exactly one of these.
local function place(r)
  if r.state == 'queued' then
    if suspect(r) then
      return P .. 'suspects'
    end
    return P .. 'q:' .. r.queue .. ':' .. r.prio
  elseif r.state == 'waiting' then
    return P .. 'park:' .. r.park
  end
  return P .. 'later'
end

-- Whether a ledger follows the events: how many may wait for it, or false. They are then cut off as
-- it has read them.
local backlog
local function followed()
  if backlog == nil then
    backlog = tonumber(call('HGET', P .. 'clock', 'ledger') or nil) or false
  end
  return backlog
end

-- A final record and what belongs to it are known for a while. Where a ledger follows, that begins
-- once it has them.
local function fade(id, r)
  call('PEXPIRE', P .. 'job:' .. id, ARGV[2])
  if r.idem then
    call('PEXPIRE', P .. 'idem:' .. r.idem, KEEP)
  end
  if r.o then
    call('PEXPIRE', P .. 'out:' .. id, KEEP)
    call('PEXPIRE', P .. 'cold:' .. id, KEEP)
  end
  if r.sb then
    call('PEXPIRE', P .. 'steps:' .. id, KEEP)
  end
end

-- Every script ends with this: what the transitions above gathered goes out in as few commands as
-- it can.
local function commit()
  for queue, of in pairs(counts) do
    for state, by in pairs(of) do
      if by ~= 0 then
        call('HINCRBY', P .. 'counts', queue .. ' ' .. state, by)
      end
    end
  end
  if #events > 0 then -- one entry, of up to a script's 500 transitions
    if followed() then
      call('XADD', P .. 'events', '*', 'e', table.concat(events, '\n'))
    else
      call('XADD', P .. 'events', 'MAXLEN', '~', 1000, '*', 'e', table.concat(events, '\n'))
    end
  end
  for queue in pairs(bells) do
    local bell = P .. 'bell:' .. queue
    if call('LLEN', bell) == 0 then
      call('RPUSH', bell, 1)
    end
  end
  for worker in pairs(calls) do
    call_worker(worker, 'wake')
  end
end
