-- doctor(fix ('1'), kind, subjects…): checks the invariants of these subjects, at this moment, and
-- repairs what it reports if `fix`. Returns three values per violation: its word, its subject, and
-- what was seen. shared/tandem_shared/doctor/findings.py explains the words. A subject is a job's
-- id, a key without the prefix, or such a key, a space and a member.

local fix, kind = ARGV[4] == '1', ARGV[5]
local found = {}

-- Reports a violation; returns whether to repair it.
local function report(word, subject, seen)
  local n = #found
  found[n + 1], found[n + 2], found[n + 3] = word, subject, tostring(seen or '')
  return fix
end

-- The key, without the prefix, of the place where a record belongs; nil for a final one.
local function home(r)
  if FINAL[r.state] then
    return nil
  elseif r.state == 'running' then
    return 'leases'
  elseif r.state == 'waiting' and not r.park then
    return 'park:'
  end
  return string.sub(place_of(r), #P + 1)
end

local function is_complete(r)
  return r.queue and r.prio and r.v and r.attempt and r.max and r.tenant and tonumber(r.due)
    and (FINAL[r.state] or TRANSITIONS[r.state]) and true
end

-- Whether a ledger may still have to read this record: the stream has an entry that is as old.
local function is_unread(r)
  if not ledger_backlog() then
    return false
  end
  local head = call('XRANGE', P .. 'events', '-', '+', 'COUNT', 1)[1]
  return head and tonumber(string.match(head[1], '^%d+')) <= tonumber(r.v) / 1000 + 60000
end

local function check_final(id, r)
  local stays = call('PTTL', P .. 'job:' .. id) == -1 and not is_unread(r)
  if stays and report('final-stays', id) then
    if ledger_backlog() then -- another event makes the ledger read it, and let it expire
      events[#events + 1] = id .. ' ' .. r.state .. ' ' .. r.v .. ' ' .. r.attempt
    else
      set_ttls(id, r)
    end
  end
end

local function check_locks(id, r)
  for number, name in string.gmatch(r.lk, '(%d+) ([^\n]*)\n') do
    local me, lock = id .. ' ' .. r.token .. ' ' .. number, r.tenant .. ':' .. name
    local known = name == '' or call('HGET', P .. 'lock:' .. lock, 'holder') == me
      or call('ZSCORE', P .. 'waits:' .. lock, me)
    if not known and report('lock-forgotten', id, name) then
      call('ZADD', P .. 'waits:' .. lock, NOW_STAMP, me)
      if call('EXISTS', P .. 'lock:' .. lock) == 0 then
        hand_over_lock(r.tenant, name)
      end
    end
  end
end

local function check_running(id, r)
  local ends = tonumber(call('ZSCORE', P .. 'leases', id) or nil)
  local worker = string.match(r.token or '', '%.(.*)$')
  if not worker or call('EXISTS', P .. 'worker:' .. worker) == 0 then
    if report('worker-gone', id, int(ends or 0)) then
      leave(id, nil, 'lost')
      return
    end
  elseif ends and ends > NOW_MS + 2 * LEASE_MS and report('lease-too-long', id) then
    call('ZADD', P .. 'leases', 'XX', LEASE_END, id)
  end
  local me = id .. ':' .. (r.token or '')
  for _, name in pairs({ key_of(r), r.slot }) do
    local set = 'slots:' .. name
    if call('SISMEMBER', P .. set, me) == 0 and report('slot-untold', id, set) then
      call('SADD', P .. set, me)
    end
  end
  if r.lk then
    check_locks(id, r)
  end
end

local function put_back(id, r)
  if r.state == 'running' then
    call('ZADD', P .. 'leases', LEASE_END, id)
  elseif r.state == 'waiting' then
    requeue(id, r)
  elseif r.state == 'queued' then
    enqueue(id, r)
  else
    schedule(id, r)
  end
end

local function check_job(id)
  local job, r = P .. 'job:' .. id, read_record(id)
  if not r.state and call('EXISTS', job) == 0 then
    return
  elseif not r.state or not is_complete(r) then
    report('record-broken', id)
    return
  elseif r.lk and r.state ~= 'running' and report('locks-stay', id) then
    call('HDEL', job, 'lk')
  end
  if FINAL[r.state] then
    return check_final(id, r)
  end
  if call('PTTL', job) ~= -1 and report('record-expires', id) then
    call('PERSIST', job)
  end
  local place = home(r)
  if not call('ZSCORE', P .. place, id) and report('job-nowhere', id, place) then
    put_back(id, r)
  end
  local watched = not r.exp or r.state == 'running' or call('ZSCORE', P .. 'expiries', id)
  if not watched and report('expiry-missing', id) then
    call('ZADD', P .. 'expiries', r.exp, id)
  end
  if r.state == 'running' then
    check_running(id, r)
  end
end

local function check_entry(subject)
  local key, id = string.match(subject, '^(.*) (%S+)$')
  local score = tonumber(call('ZSCORE', P .. key, id) or nil)
  if not score then
    return
  end
  local r = read_record(id)
  if not r.state then
    if report('entry-without-record', subject) then
      call('ZREM', P .. key, id)
    end
  elseif is_complete(r) then
    local belongs, due = home(r) == key, tonumber(r.due)
    if key == 'expiries' then
      belongs = not FINAL[r.state] and r.exp and r.state ~= 'running'
      due = tonumber(r.exp or nil)
    end
    if not belongs then
      if report('entry-misplaced', subject, r.state) then
        call('ZREM', P .. key, id)
      end
    elseif key ~= 'leases' and score ~= due and report('entry-at-wrong-time', subject) then
      call('ZADD', P .. key, due, id)
    end
  end
end

local function requeue_parked(key)
  local ids = call('ZRANGE', P .. key, 0, 499)
  for i = 1, #ids do
    call('ZREM', P .. key, ids[i])
    local r = read_record(ids[i])
    if r.state == 'waiting' then
      requeue(ids[i], r)
    end
  end
end

local function check_parked_by_limit(key, place, name)
  local l = find_limit(name)
  if not l then
    if report('limit-gone', key, call('ZCARD', P .. key)) then
      requeue_parked(key)
    end
    return
  end
  local served = call('SISMEMBER', P .. 'limited:' .. name, place) == 1
    and (call('ZSCORE', P .. 'gates', name)
      or (l.slots > 0 and call('SCARD', P .. 'slots:' .. name) >= l.slots))
  if not served and report('limit-unwatched', key) then
    call('SADD', P .. 'limited:' .. name, place)
    call('ZADD', P .. 'gates', NOW_MS, name)
  end
end

-- Whether something will look at a place where jobs wait.
local function check_place(key)
  local kind, name = string.match(key, '^(%w+):(.*)$')
  local first = call('ZRANGE', P .. key, 0, 0, 'WITHSCORES')[2]
  local place, limit = string.match(key, '^park:limit:([^:]*:[^:]*):(.*)$')
  if not first then
    return
  elseif place then
    check_parked_by_limit(key, place, limit)
  elseif kind == 'later' then
    local at = tonumber(call('ZSCORE', P .. 'agenda', name) or nil)
    if not (at and at <= tonumber(first)) and report('place-unlisted', key) then
      call('ZADD', P .. 'agenda', first, name)
    end
  elseif kind == 'suspects' then
    if call('SISMEMBER', P .. 'suspected', name) == 0 and report('place-unlisted', key) then
      call('SADD', P .. 'suspected', name)
    end
  else
    local queue = string.match(name, '^%w+:([^:]*):')
    local listed = call('SISMEMBER', P .. 'parked:' .. queue, name) == 1
      and call('SISMEMBER', P .. 'parked', queue) == 1
    if not listed and report('place-unlisted', key) then
      call('SADD', P .. 'parked:' .. queue, name)
      call('SADD', P .. 'parked', queue)
    end
  end
end

local function check_holder(subject)
  local key, id, token = string.match(subject, '^(.*) ([^ :]*):(%S+)$')
  local name, me = string.match(key, '^slots:(.*)$'), id .. ':' .. token
  if call('SISMEMBER', P .. key, me) == 0 then
    return
  end
  local r = read_record(id)
  local holds = r.slot == name or key_of(r) == name
  if not (r.state == 'running' and r.token == token and holds)
    and report('holder-gone', subject) then
    call('SREM', P .. key, me)
    serve(name, 1)
  end
end

-- Whether the acquisition's attempt runs and has the lock in its record.
local function is_acquired(holder, tenant, name)
  local id, number = string.match(holder, '^(%S+) %S+ (%d+)$')
  if not id or not holder_runs(holder) then
    return false
  end
  local r = read_record(id)
  local line = '\n' .. number .. ' ' .. name .. '\n'
  return r.tenant == tenant and string.find('\n' .. (r.lk or ''), line, 1, true)
end

local function check_lock(key)
  local tenant, name = string.match(key, '^%w+:([^:]*):(.*)$')
  local lock = P .. 'lock:' .. tenant .. ':' .. name
  if call('EXISTS', lock, P .. 'waits:' .. tenant .. ':' .. name) == 0 then
    return
  end
  local holder = call('HGET', lock, 'holder')
  local acquired = holder and is_acquired(holder, tenant, name)
  if not acquired and report('lock-stays', key, holder or '') then
    hand_over_lock(tenant, name)
  end
end

local function check_wait(subject)
  local key, holder = string.match(subject, '^(.*) (%S+ %S+ %S+)$')
  local tenant, name = string.match(key, '^%w+:([^:]*):(.*)$')
  local stays = call('ZSCORE', P .. key, holder) and not is_acquired(holder, tenant, name)
  if stays and report('wait-stays', subject) then
    call('ZREM', P .. key, holder)
  end
end

-- What belongs to a job (streams, steps, idempotency key) lives as long as its record.
local function check_kin(key)
  local set, id = string.match(key, '^(%w+):(.*)$')
  if set == 'idem' then
    id = string.match(call('GET', P .. key) or '', '^(%S+) ') or ''
  end
  local left, owner = call('PTTL', P .. key), call('PTTL', P .. 'job:' .. id)
  if left == -2 then
    return
  elseif owner == -2 then
    if left == -1 and report('kin-stays', key) then
      call('DEL', P .. key)
    end
  elseif owner == -1 and left ~= -1 and not FINAL[call('HGET', P .. 'job:' .. id, 'state')] then
    if report('kin-expires', key) then
      call('PERSIST', P .. key)
    end
  elseif owner ~= -1 and left == -1 and report('kin-stays', key) then
    call('PEXPIRE', P .. key, owner)
  end
end

local function check_worker(key)
  if call('PTTL', P .. key) == -1 and report('worker-stays', key) then
    local is_worker = string.sub(key, 1, 7) == 'worker:'
    call('PEXPIRE', P .. key, is_worker and WORKER_TTL_MS or TASKS_TTL_MS)
  end
end

-- Whether some process ticks.
local function check_time(key)
  local c = call('HMGET', P .. 'clock', 'tick', 'grace')
  local head = call('ZRANGE', P .. key, 0, 0, 'WITHSCORES')
  local late = NOW_MS - math.max(2 * LEASE_MS, 10000)
  local stands = head[2] and tonumber(head[2]) < late and tonumber(c[1] or 0) < late
  if stands and report('time-stands', key) then
    process_due()
  end
end

local CHECKS = {
  job = check_job, entry = check_entry, place = check_place,
  holder = check_holder, lock = check_lock, wait = check_wait, kin = check_kin,
  worker = check_worker, time = check_time,
}
for at = 6, #ARGV do
  CHECKS[kind](ARGV[at])
end
drop_leases()
commit()
return found
