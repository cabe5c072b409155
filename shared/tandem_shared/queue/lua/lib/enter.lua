-- How a job enters: the record, its idempotency key, the event, and the place where it waits.
-- Jobs that come together mostly differ in nothing but id and payload: what several have in common
-- is sent once, as a kind of KIND values. ARGV has from `start` on how many kinds there are, these,
-- and three values a job: the number of its kind, from 0 on, its id and its payload. Returns id,
-- whether another submission was first, stamp, state, due; 'reused' as the state when the
-- idempotency key belongs to other content. `has_room(queue)`, if given, is asked of what is new: false and a
-- word that stands for the state, and nothing enters.

local KIND, JOB = 14, 3
local NOW_MS = int(MS)

-- Where the jobs begin.
local function after_kinds(start)
  return start + 1 + KIND * tonumber(ARGV[start])
end

-- The job whose values stand at `at`.
local function enter(start, at, has_room)
  local number, id, payload = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local kind = start + 1 + KIND * tonumber(number)
  local task, ver, tenant, queue, prio, opts, max = unpack(ARGV, kind, kind + 6)
  local delay, run, expires, ck, cl, idem, print = unpack(ARGV, kind + 7, kind + 13)
  local job = P .. 'job:' .. id

  if idem ~= '' then
    local first = call('GET', P .. 'idem:' .. idem)
    local owner, content = string.match(first or '', '^(%S+) (%S+)$')
    local known = owner and call('HMGET', P .. 'job:' .. owner, 'v', 'state', 'due') or {}
    if known[1] then -- else the key is about to expire, a moment after its record
      if content ~= print then
        return { owner, 1, '0', 'reused', '0' }
      end
      return { owner, owner == id and 0 or 1, unpack(known) }
    end
  end
  if call('EXISTS', job) == 1 then
    return { id, 0, unpack(call('HMGET', job, 'v', 'state', 'due')) }
  end
  if has_room then
    local fits, why = has_room(queue)
    if not fits then
      return { id, 0, '0', why, '0' }
    end
  end

  local due, state = NOW_MS, 'queued'
  local wait = run ~= '' and run - MS or delay ~= '' and tonumber(delay) or 0
  if wait > 0 then
    due, state = int(MS + wait), 'scheduled'
  end
  local r = { queue = queue, prio = prio, attempt = '0', due = due }
  -- What every transition needs comes first: Redis looks for a field from there on.
  call('HSET', job, 'state', state, 'v', NOW, 'attempt', '0', 'queue', queue, 'prio', prio, 'due', due, 'tenant', tenant,
    'max', max, 'f', FORM, 'task', task, 'ver', ver, 'opts', opts, 'payload', payload, 'at', NOW)
  if state == 'scheduled' then
    call('HSET', job, 'run', due)
  end
  if ck ~= '' then
    call('HSET', job, 'ck', ck, 'cl', cl)
  end
  if idem ~= '' then
    call('HSET', job, 'idem', idem)
    call('SET', P .. 'idem:' .. idem, id .. ' ' .. print)
  end
  if expires ~= '' then
    call('HSET', job, 'exp', MS + tonumber(expires))
    call('ZADD', P .. 'expiries', MS + tonumber(expires), id)
  end
  move(id, r, state, NOW)
  if state == 'queued' and paused(queue) then
    hold(id, r)
  elseif state == 'queued' then
    line_up(id, r)
  else
    put_off(id, r)
  end
  return { id, 0, r.v, r.state, due }
end
