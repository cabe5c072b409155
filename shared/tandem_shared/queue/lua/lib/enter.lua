-- How a job enters: its record, idempotency key and event, and the place where it waits.
--
-- Jobs that come together mostly differ in id and payload only, so what several share is sent once,
-- as a template of TEMPLATE_ARGS values. From `start` on, ARGV has the number of templates, the
-- templates, and then per job the number of its template (from 0), its id and its payload.

local TEMPLATE_ARGS, JOB_ARGS = 14, 3
local NOW_MS_TEXT = int(NOW_MS)
local RECORD_BYTES = 500 -- of a record in Redis, about, besides its options and payload

-- The position of the first job in ARGV.
local function first_job(start)
  return start + 1 + TEMPLATE_ARGS * tonumber(ARGV[start])
end

-- Enters the job whose values are at `at`; one that is known is left as it is. `refusal(queue)`, if
-- given, returns a word that keeps a new job out. Returns id, 1 if an earlier submission had the
-- idempotency key, stamp, state, due; in place of the state, 'reused' if the key belongs to other
-- content, or the word of a refusal.
local function enter(start, at, refusal)
  local number, id, payload = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local from = start + 1 + TEMPLATE_ARGS * tonumber(number)
  local task, ver, tenant, queue, prio, opts, max = unpack(ARGV, from, from + 6)
  local delay, run, expires, ck, cl, idem, fingerprint = unpack(ARGV, from + 7, from + 13)
  local job = P .. 'job:' .. id

  if idem ~= '' then
    local first = call('GET', P .. 'idem:' .. idem)
    local owner, content = string.match(first or '', '^(%S+) (%S+)$')
    local known = owner and call('HMGET', P .. 'job:' .. owner, 'v', 'state', 'due') or {}
    if known[1] then -- else the key outlives its record by a moment
      if content ~= fingerprint then
        return { owner, 1, '0', 'reused', '0' }
      end
      return { owner, owner == id and 0 or 1, unpack(known) }
    end
  end
  if call('EXISTS', job) == 1 then
    return { id, 0, unpack(call('HMGET', job, 'v', 'state', 'due')) }
  end
  local refused = refusal and refusal(queue)
  if refused then
    return { id, 0, '0', refused, '0' }
  end

  local due, state = NOW_MS_TEXT, 'queued'
  local wait = run ~= '' and run - NOW_MS or delay ~= '' and tonumber(delay) or 0
  if wait > 0 then
    due, state = int(NOW_MS + wait), 'scheduled'
  end
  local r = { queue = queue, prio = prio, attempt = '0', due = due }
  -- What every transition reads comes first, where Redis finds it fastest.
  call('HSET', job, 'state', state, 'v', NOW_STAMP, 'attempt', '0', 'queue', queue, 'prio', prio,
    'due', due, 'tenant', tenant, 'max', max, 'f', FORMAT_TEXT, 'task', task, 'ver', ver,
    'opts', opts, 'payload', payload, 'at', NOW_STAMP)
  if state == 'scheduled' then
    call('HSET', job, 'run', due)
    if run ~= '' then
      call('HSET', job, 'at_time', '1')
    end
  end
  if ck ~= '' then
    call('HSET', job, 'ck', ck, 'cl', cl)
  end
  if idem ~= '' then
    call('HSET', job, 'idem', idem)
    call('SET', P .. 'idem:' .. idem, id .. ' ' .. fingerprint)
  end
  if expires ~= '' then
    call('HSET', job, 'exp', NOW_MS + tonumber(expires))
    call('ZADD', P .. 'expiries', NOW_MS + tonumber(expires), id)
  end
  kept_bytes = kept_bytes + RECORD_BYTES + #opts + #payload
  change_state(id, r, state, NOW_STAMP)
  if state == 'queued' then
    enqueue(id, r)
  else
    schedule(id, r)
  end
  return { id, 0, r.v, r.state, due }
end
