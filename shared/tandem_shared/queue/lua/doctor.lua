-- doctor(fix ('1'), kind, subjects…): compares what Redis has with what its records demand, at this
-- moment, and mends what it reports if `fix`. A record determines the entries of its job
-- (`demanded`), and a place where jobs wait the indexes that list it (`check_place`): what is
-- missing is put there, and entries that nothing demands are removed.
--
-- Returns three values per finding: its word, which shared/tandem_shared/doctor/findings.py
-- explains, its subject, and what was seen. By `kind`, a subject is the id of a 'job', a 'key'
-- without the prefix, or an 'entry': such a key, a space and a member.

local fix, kind = ARGV[4] == '1', ARGV[5]
local found, mended = {}, {} -- mended: keys to which an entry was added

-- Returns whether to mend it.
local function report(word, subject, seen)
  local n = #found
  found[n + 1], found[n + 2], found[n + 3] = word, subject, seen or ''
  return fix
end

-- The entries that a job's record demands, by '<key> <member>', and the record; false if it lacks
-- fields. An entry without `at` is a member of a set; else its score is `at`, or any up to `max`.
-- `holds` are the locks that it holds, as '<lock> <holder>'.
local function demanded(id)
  local r, entries, holds = read_record(id), {}, {}
  local running = r.state == 'running'
  local complete = r.queue and r.prio and r.v and r.attempt and r.max and r.tenant
    and tonumber(r.due) and (FINAL[r.state] or TRANSITIONS[r.state])
    and (r.state ~= 'waiting' or r.park)
    and not (running and not (r.began and string.find(r.token or '', '.', 1, true)))
  local function demand(key, member, at, max)
    entries[key .. ' ' .. member] = { key = key, member = member, at = at, max = max }
  end
  if not complete then
    return next(r) == nil and entries, r, holds
  elseif running then
    demand('leases', id, LEASE_END, NOW_MS + 2 * LEASE_MS)
    for _, name in pairs({ key_of(r), r.slot }) do
      demand('slots:' .. name, id .. ':' .. r.token)
    end
    for number, name in string.gmatch(r.lk or '', '(%d+) ([^\n]+)\n') do
      local lock, me = r.tenant .. ':' .. name, id .. ' ' .. r.token .. ' ' .. number
      if call('HGET', P .. 'lock:' .. lock, 'holder') == me then
        holds[lock .. ' ' .. me] = true
      else
        demand('waits:' .. lock, me, NOW_STAMP, math.huge)
      end
    end
  elseif not FINAL[r.state] then
    demand(string.sub(place_of(r), #P + 1), id, r.due)
    if r.exp then
      demand('expiries', id, r.exp)
    end
  end
  return entries, r, holds
end

local function score_of(key, member, is_sorted)
  if is_sorted then
    return tonumber(call('ZSCORE', P .. key, member) or nil)
  end
  return call('SISMEMBER', P .. key, member) == 1
end

-- Checks that entries exist, at the right score.
local function check_entries(subject, queue, entries)
  for _, e in pairs(entries) do
    local score, word = score_of(e.key, e.member, e.at), nil
    if not score then
      word = 'entry-missing'
    elseif e.at and score ~= tonumber(e.at) and not (e.max and score <= tonumber(e.max)) then
      word = 'entry-at-wrong-time'
    end
    if word and report(word, subject, e.key) then
      if e.at then
        call('ZADD', P .. e.key, e.at, e.member)
      else
        call('SADD', P .. e.key, e.member)
      end
      mended[#mended + 1] = e.key
      ring(queue)
    end
  end
end

-- A ledger may still have to read the record if the stream has an entry that is as old.
local function check_final(id, r)
  local head = ledger_backlog() and call('XRANGE', P .. 'events', '-', '+', 'COUNT', 1)[1]
  local unread = head and tonumber(string.match(head[1], '^%d+')) <= tonumber(r.v) / 1000 + 60000
  local stays = not unread and call('PTTL', P .. 'job:' .. id) == -1
  if stays and report('final-stays', id) then
    if ledger_backlog() then -- another event makes the ledger read it, and let it expire
      events[#events + 1] = id .. ' ' .. r.state .. ' ' .. r.v .. ' ' .. r.attempt
    else
      set_ttls(id, r)
    end
  end
end

-- A job's record lives until it is final; streams, steps and idempotency key as long as the record.
local LIFE_MS = { worker = WORKER_TTL_MS, tasks = TASKS_TTL_MS, entries = TASKS_TTL_MS }
local function check_life(key, subject)
  local set, id = string.match(key, '^(%w+):(.*)$')
  if set == 'idem' then
    id = string.match(call('GET', P .. key) or '', '^%S*')
  end
  local job, left = P .. 'job:' .. id, call('PTTL', P .. key)
  local state, life = call('HGET', job, 'state'), LIFE_MS[set] or call('PTTL', job)
  if state and not FINAL[state] then
    if left >= 0 and report('kin-expires', subject or key) then
      call('PERSIST', P .. key)
    end
  elseif left == -1 and life ~= -1 and report('kin-stays', key) then
    call('PEXPIRE', P .. key, life) -- below zero without a record: deletes the key
  end
end

local function check_job(id)
  local entries, r = demanded(id)
  if not entries then
    report('record-broken', id)
    return
  elseif not r.state then
    return
  elseif r.lk and r.state ~= 'running' and report('locks-stay', id) then
    call('HDEL', P .. 'job:' .. id, 'lk')
  end
  if FINAL[r.state] then
    return check_final(id, r)
  end
  check_life('job:' .. id, id)
  local worker = r.state == 'running' and string.match(r.token, '%.(.*)$')
  if worker and call('EXISTS', P .. 'worker:' .. worker) == 0
    and report('worker-gone', id, worker) then
    leave(id, nil, 'lost')
  else
    check_entries(id, r.queue, entries)
  end
end

local function check_entry(subject)
  local key, member = string.match(subject, '^(waits:.*) (%S+ %S+ %S+)$')
  if not key then
    key, member = string.match(subject, '^(.*) (%S+)$')
  end
  local limit = string.match(key, '^slots:(.*)$')
  local entries, r = demanded(string.match(member, '^[^ :]*'))
  local stays = entries and not entries[subject] and score_of(key, member, not limit)
  if stays and report('entry-misplaced', subject, r.state or 'no record') then
    call(limit and 'SREM' or 'ZREM', P .. key, member)
    if limit then
      serve(limit, 1)
    end
  end
end

-- Checks that workers, and what is due, find a place where jobs wait.
local function check_place(key)
  local set, name = string.match(key, '^(%w+):(.*)$')
  local queue = string.match(name, set == 'park' and '^%w+:([^:]*)' or '^[^:]*')
  local place, limit = string.match(key, '^park:limit:([^:]*:[^:]*):(.*)$')
  local first = call('ZRANGE', P .. key, 0, 0, 'WITHSCORES')[2]
  local entries
  if not first then
    return
  elseif set == 'later' then
    entries = { { key = 'agenda', member = name, at = first, max = first } }
  elseif set == 'suspects' then
    entries = { { key = 'suspected', member = name } }
  elseif not limit then
    entries = { { key = 'parked:' .. queue, member = name }, { key = 'parked', member = queue } }
  else
    local l = find_limit(limit)
    entries = { { key = 'limited:' .. limit, member = place } }
    if not (l and l.slots > 0 and call('SCARD', P .. 'slots:' .. limit) >= l.slots) then
      entries[2] = { key = 'gates', member = limit, at = NOW_MS, max = math.huge }
    end
    if not l and report('limit-gone', key) then
      call('HSET', P .. 'limit:' .. limit, 'slots', 0) -- deleted once all have passed
      limits[limit] = nil
    end
  end
  check_entries(key, queue, entries)
end

local function check_lock(key)
  local lock = string.match(key, '^%w+:(.*)$')
  local holder = call('HGET', P .. 'lock:' .. lock, 'holder')
  local _, _, holds = demanded(holder and string.match(holder, '^%S*') or '')
  local stays = call('EXISTS', P .. key) == 1 and not holds[lock .. ' ' .. (holder or '')]
  if stays and report('lock-stays', key, holder or '') then
    hand_over_lock(string.match(lock, '^([^:]*):(.*)$'))
  end
end

-- Whether some process does what is due.
local function check_time(key)
  local late = NOW_MS - math.max(2 * LEASE_MS, 10000)
  local stands = call('ZCOUNT', P .. key, '-inf', late) > 0
    and tonumber(call('HGET', P .. 'clock', 'tick') or 0) < late
  if stands and report('time-stands', key) then
    process_due()
    for _, place in ipairs(call('ZRANGEBYSCORE', P .. 'agenda', '-inf', NOW_MS, 'LIMIT', 0, 100)) do
      enqueue_due(place, 100)
    end
  end
end

local BY_KEY = {
  later = check_place, suspects = check_place, park = check_place,
  lock = check_lock, waits = check_lock,
  idem = check_life, out = check_life, cold = check_life, steps = check_life,
  worker = check_life, tasks = check_life, entries = check_life,
  leases = check_time, agenda = check_time, expiries = check_time, gates = check_time,
}
local function check_key(key)
  local check = BY_KEY[string.match(key, '^%w*')]
  if check then
    check(key)
  end
end

local CHECKS = { job = check_job, key = check_key, entry = check_entry }
for at = 6, #ARGV do
  CHECKS[kind](ARGV[at])
end
for i = 1, #mended do
  check_key(mended[i])
end
drop_leases()
commit()
return found
