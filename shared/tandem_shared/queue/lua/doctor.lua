-- doctor('1' to mend, kind, subjects…): whether what must hold holds for these, at this moment.
-- Returns three values for each thing that does not: a word for it, its subject, and what was seen.
-- Mends what it reports if asked to. What each word means stands in
-- shared/tandem_shared/doctor/findings.py; a subject is an id, a key without the prefix, or a key,
-- a blank and a member.

local mend, kind = ARGV[4] == '1', ARGV[5]
local found = {}
local function report(word, subject, seen)
  local n = #found
  found[n + 1], found[n + 2], found[n + 3] = word, subject, tostring(seen or '')
  return mend
end

-- The key, without the prefix, of the place where a record should stand; nil if it should stand
-- nowhere.
local function home(r)
  if FINAL[r.state] then
    return nil
  elseif r.state == 'running' then
    return 'leases'
  elseif r.state == 'waiting' and not r.park then
    return 'park:'
  end
  return string.sub(place(r), #P + 1)
end

local function whole(r)
  return r.queue and r.prio and r.v and r.attempt and r.max and r.tenant and tonumber(r.due)
    and (FINAL[r.state] or TRANSITIONS[r.state]) and true
end

-- ------------------------------------------------------------------------------------------------------------ records

-- Whether a ledger may still have to read of this: no entry is left that is as old.
local function unread(r)
  if not followed() then
    return false
  end
  local head = call('XRANGE', P .. 'events', '-', '+', 'COUNT', 1)[1]
  return head and tonumber(string.match(head[1], '^%d+')) <= tonumber(r.v) / 1000 + 60000
end

local function look_at_final(id, r)
  if call('PTTL', P .. 'job:' .. id) == -1 and not unread(r) and report('final-stays', id) then
    if followed() then
      events[#events + 1] = id .. ' ' .. r.state .. ' ' .. r.v .. ' ' .. r.attempt -- told again; the ledger does the rest
    else
      fade(id, r)
    end
  end
end

local function look_at_locks(id, r)
  for number, name in string.gmatch(r.lk, '(%d+) ([^\n]*)\n') do
    local me, lock = id .. ' ' .. r.token .. ' ' .. number, r.tenant .. ':' .. name
    if name ~= '' and call('HGET', P .. 'lock:' .. lock, 'holder') ~= me and not call('ZSCORE', P .. 'waits:' .. lock, me) then
      if report('lock-forgotten', id, name) then
        call('ZADD', P .. 'waits:' .. lock, NOW, me)
        if call('EXISTS', P .. 'lock:' .. lock) == 0 then
          hand_on(r.tenant, name)
        end
      end
    end
  end
end

local function look_at_running(id, r)
  local ends = tonumber(call('ZSCORE', P .. 'leases', id) or nil)
  local worker = string.match(r.token or '', '%.(.*)$')
  if not worker or call('EXISTS', P .. 'worker:' .. worker) == 0 then
    if report('worker-gone', id, int(ends or 0)) then
      leave(id, nil, 'lost')
      return
    end
  elseif ends and ends > MS + 2 * LEASE and report('lease-too-long', id) then
    call('ZADD', P .. 'leases', 'XX', LEASE_END, id)
  end
  local me = id .. ':' .. (r.token or '')
  local key, slots = r.ck and 'key:' .. r.tenant .. ':' .. r.ck, r.slot and 'slots:' .. r.slot
  for _, set in ipairs({ key or '', slots or '' }) do
    if set ~= '' and call('SISMEMBER', P .. set, me) == 0 and report('slot-untold', id, set) then
      call('SADD', P .. set, me)
    end
  end
  if r.lk then
    look_at_locks(id, r)
  end
end

local function look_at_job(id)
  local job, r = P .. 'job:' .. id, read(id)
  if not r.state and call('EXISTS', job) == 0 then
    return
  elseif not r.state or not whole(r) then
    report('record-broken', id)
    return
  elseif r.lk and r.state ~= 'running' and report('locks-stay', id) then
    call('HDEL', job, 'lk')
  end
  if FINAL[r.state] then
    return look_at_final(id, r)
  end
  if call('PTTL', job) ~= -1 and report('record-expires', id) then
    call('PERSIST', job)
  end
  local stands = home(r)
  if not call('ZSCORE', P .. stands, id) and report('job-nowhere', id, stands) then
    if r.state == 'running' then
      call('ZADD', P .. 'leases', LEASE_END, id)
    elseif r.state == 'waiting' then
      requeue(id, r)
    elseif r.state == 'queued' then
      line_up(id, r)
    else
      put_off(id, r)
    end
  end
  if r.exp and r.state ~= 'running' and not call('ZSCORE', P .. 'expiries', id) and report('expiry-missing', id) then
    call('ZADD', P .. 'expiries', r.exp, id)
  end
  if r.state == 'running' then
    look_at_running(id, r)
  end
end

-- ------------------------------------------------------------------------------------------------------------- places

local function look_at_entry(subject)
  local key, id = string.match(subject, '^(.*) (%S+)$')
  local score = tonumber(call('ZSCORE', P .. key, id) or nil)
  if not score then
    return
  end
  local r = read(id)
  if not r.state then
    if report('entry-without-record', subject) then
      call('ZREM', P .. key, id)
    end
  elseif whole(r) then
    local belongs, due = home(r) == key, tonumber(r.due)
    if key == 'expiries' then
      belongs, due = not FINAL[r.state] and r.exp and r.state ~= 'running', tonumber(r.exp or nil)
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

local LINED = 500 -- jobs of a place that are lined up again at once

local function line_up_all(key)
  local ids = call('ZRANGE', P .. key, 0, LINED - 1)
  for i = 1, #ids do
    call('ZREM', P .. key, ids[i])
    local r = read(ids[i])
    if r.state == 'waiting' then
      requeue(ids[i], r)
    end
  end
end

-- Whether somebody will look at a place where jobs wait.
local function look_at_park(key)
  local why, head = string.sub(key, 6), call('ZRANGE', P .. key, 0, 16)
  local queue = string.match(why, '^queue:([^:]*):')
  local place, task = string.match(why, '^limit:([^:]*:[^:]*):(.*)$')
  local tenant, ck = string.match(why, '^key:([^:]*):(.*)$')
  if #head == 0 then
    return
  elseif queue then
    if call('HEXISTS', P .. 'paused', queue) == 0 and report('hold-without-pause', key) then
      call('HSET', P .. 'paused', queue, '0')
    end
  elseif place then
    local l = limit(task)
    if not l then
      if report('limit-gone', key, call('ZCARD', P .. key)) then
        line_up_all(key)
      end
    elseif call('SISMEMBER', P .. 'limited:' .. task, place) == 0
      or not (call('ZSCORE', P .. 'gates', task) or (l.slots > 0 and call('SCARD', P .. 'slots:' .. task) >= l.slots)) then
      if report('limit-unwatched', key) then
        call('SADD', P .. 'limited:' .. task, place)
        call('ZADD', P .. 'gates', MS, task)
      end
    end
  elseif tenant then
    if call('SCARD', P .. why) == 0 and report('key-free', key, call('ZCARD', P .. key) .. ' ' .. table.concat(head, ' ')) then
      wake_key({ tenant = tenant, ck = ck })
    end
  elseif call('SISMEMBER', P .. 'parked', why) == 0 and report('park-unlisted', key) then
    call('SADD', P .. 'parked', why)
  end
end

-- A job that lines up, or waits for its task's limit: when it leaves, it calls the next one of its
-- key.
local function look_for_called(id)
  local r = read(id)
  if r.ck and (r.state == 'queued' or (r.state == 'waiting' and waited_for(r))) then
    report('called', 'park:key:' .. r.tenant .. ':' .. r.ck)
  end
end

-- ------------------------------------------------------------------------------------------- what running jobs hold

local function look_at_holder(subject)
  local key, id, token = string.match(subject, '^(.*) ([^ :]*):(%S+)$')
  local set, name = string.match(key, '^(%w+):(.*)$')
  local me = id .. ':' .. token
  if call('SISMEMBER', P .. key, me) == 0 then
    return
  end
  local r = read(id)
  local wanted = set == 'slots' and r.slot or r.ck and r.tenant .. ':' .. r.ck
  if not (r.state == 'running' and r.token == token and wanted == name) and report('holder-gone', subject) then
    call('SREM', P .. key, me)
    if set == 'slots' then
      serve(name, 1)
    else
      local tenant, ck = string.match(name, '^([^:]*):(.*)$')
      wake_key({ tenant = tenant, ck = ck })
    end
  end
end

local function acquired(holder, tenant, name)
  local id, number = string.match(holder, '^(%S+) %S+ (%d+)$')
  if not id or not holds_still(holder) then
    return false
  end
  local r = read(id)
  return r.tenant == tenant and string.find('\n' .. (r.lk or ''), '\n' .. number .. ' ' .. name .. '\n', 1, true)
end

local function look_at_lock(key)
  local tenant, name = string.match(key, '^%w+:([^:]*):(.*)$')
  local lock, waits = P .. 'lock:' .. tenant .. ':' .. name, P .. 'waits:' .. tenant .. ':' .. name
  if call('EXISTS', lock, waits) == 0 then
    return
  end
  local holder = call('HGET', lock, 'holder')
  if not (holder and acquired(holder, tenant, name)) and report('lock-stays', key, holder or '') then
    hand_on(tenant, name)
  end
end

local function look_at_wait(subject)
  local key, holder = string.match(subject, '^(.*) (%S+ %S+ %S+)$')
  local tenant, name = string.match(key, '^%w+:([^:]*):(.*)$')
  if call('ZSCORE', P .. key, holder) and not acquired(holder, tenant, name) and report('wait-stays', subject) then
    call('ZREM', P .. key, holder)
  end
end

-- ---------------------------------------------------------------------------------------------------------- lifetimes

-- What belongs to a job (its streams, its steps, its idempotency key) lives as long as the record.
local function look_at_kin(key)
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

local function look_at_worker(key)
  if call('PTTL', P .. key) == -1 and report('worker-stays', key) then
    call('PEXPIRE', P .. key, string.sub(key, 1, 6) == 'tasks:' and 86400000 or ALIVE)
  end
end

-- Whether anybody lets time pass.
local function look_at_time(key)
  local c = call('HMGET', P .. 'clock', 'tick', 'grace')
  local head = call('ZRANGE', P .. key, 0, 0, 'WITHSCORES')
  local late = MS - math.max(2 * LEASE, 10000)
  if head[2] and tonumber(head[2]) < late and tonumber(c[1] or 0) < late and report('time-stands', key) then
    keep_up()
  end
end

local LOOKS = {
  job = look_at_job, entry = look_at_entry, park = look_at_park, called = look_for_called, holder = look_at_holder,
  lock = look_at_lock, wait = look_at_wait, kin = look_at_kin, worker = look_at_worker, time = look_at_time,
}
for at = 6, #ARGV do
  LOOKS[kind](ARGV[at])
end
leave_leases()
commit()
return found
