-- The exits. `leave` is the only way out of `running`, `drop` the only way from any waiting place
-- to a final state; both end in `close`. What a running job holds (its lease, its slots of a key
-- and of its task, its locks) is given back here and nowhere else.

local function explain(type, message, attempt)
  local retryable = type == 'expired' and 'false' or 'true'
  return '{"type":"' .. type .. '","message":"' .. message .. '","retryable":' .. retryable
    .. ',"attempt":' .. attempt .. '}'
end

-- The same failure with more in its message. No JSON is decoded: within a string every quote has a
-- backslash before it, so what is looked for ends the message.
local function but(body, more)
  local at = string.find(body, '","retryable":', 1, true)
  return at and string.sub(body, 1, at - 1) .. '; ' .. more .. string.sub(body, at) or body
end

-- Whether a job may not start any more at that time, ms.
local function late(r, at)
  return r.exp and tonumber(r.exp) <= at
end

local LOOKED = 16 -- jobs that wait for a key, of which one is called

-- A slot of a concurrency key is free: the job that has waited longest for it may line up again.
-- While the job that was called for it waits for its task's limit, no other job of such a task is
-- called in its place: they would all move from here to there, and back.
local function wake_key(r, limited)
  local place = P .. 'park:key:' .. r.tenant .. ':' .. r.ck
  local ids = call('ZRANGE', place, 0, LOOKED - 1)
  for i = 1, #ids do
    local id = ids[i]
    local w = read(id)
    if w.state ~= 'waiting' then
      call('ZREM', place, id)
    elseif not (limited and full(call('HGET', P .. 'job:' .. id, 'task'))) then
      call('ZREM', place, id)
      return requeue(id, w)
    end
  end
end

-- The task whose limit a job waits for or was called for; nil if it never did.
local function waited_for(r)
  return r.park and string.match(r.park, '^limit:[^:]*:[^:]*:(.*)$')
end

-- What the job held or was called for is free, or of no use to it: another one may line up.
local function wake_task(r)
  local task = r.slot or waited_for(r)
  if task then
    serve(task, 1)
  end
end

local function wake(r)
  if r.ck then
    wake_key(r)
  end
  wake_task(r)
end

-- The final transition sets the TTLs, of the record and of what belongs to it, unless a ledger is
-- yet to read it. Names and values of other fields that it writes come last.
local function close(id, r, v, ...)
  call('HSET', P .. 'job:' .. id, 'state', r.state, 'v', v, 'ended', v, ...)
  if not followed() then
    fade(id, r)
  end
end

-- Ends a job that does not run: cancelled, or failed with an error.
local function drop(id, r, to, why)
  -- Perhaps, for a slot that the next one may use; who waits for its task's limit was called by its
  -- key.
  local woken = r.state == 'queued' or r.state == 'waiting' and waited_for(r)
  call('ZREM', place(r), id)
  if r.exp then
    call('ZREM', P .. 'expiries', id)
  end
  local v = stamp(r)
  move(id, r, to, v)
  if to == 'cancelled' then
    close(id, r, v, 'cancel', v)
  else
    close(id, r, v, 'error', why)
  end
  if woken then
    wake(r)
  end
end

local function remember(r, v, outcome)
  local worker = string.sub(r.token, #r.began + 2) -- the token is the stamp of its claim, a dot, and the worker
  local line = r.attempt .. ' ' .. r.began .. ' ' .. v .. ' ' .. outcome .. ' ' .. worker .. '\n'
  local lines = r.attempts and r.attempts .. line or line
  if r.attempts then
    local _, many = string.gsub(lines, '\n', '')
    for _ = MAX_SHOWN_ATTEMPTS + 1, many do
      lines = string.sub(lines, string.find(lines, '\n', 1, true) + 1)
    end
  end
  return lines
end

-- Out of `running`. `token` nil: the holder is gone, and its lease with it. `to`: succeeded,
-- failed, cancelled, retrying (after `delay` ms), queued (handed back, uncharged) or lost. `body`:
-- JSON of the result or the error, `files` of what is published. Returns what the caller may tell:
-- 'ok' (also for a repeat, which the record's last token gives away), 'lost' or 'gone'.
local leases_left = {}

local function leave(id, token, to, outcome, body, delay, files)
  local r = read(id, FINAL[to])
  if not r.state then
    return 'gone'
  end
  if token and r.token ~= token then
    return 'lost'
  end
  if r.state ~= 'running' then
    return token and 'ok' or 'lost'
  end

  local lost = to == 'lost'
  if r.cancel then
    to, outcome = 'cancelled', 'cancelled' -- a request to cancel wins over every other outcome
  elseif lost then
    outcome = 'worker_lost'
    r.losses = tonumber(r.losses or 0) + 1
    local last = r.losses >= 3 and 'three workers were lost while they ran this job, so no other one gets it'
      or tonumber(r.attempt) >= tonumber(r.max) and 'the worker that ran the last of its attempts was lost'
    body = explain('worker_lost', last or 'the worker that ran this attempt was lost', r.attempt)
    to = last and 'failed' or 'queued'
  elseif to == 'retrying' and tonumber(r.attempt) >= tonumber(r.max) then
    to = 'failed'
  elseif to == 'retrying' and late(r, MS + delay) then
    to = 'failed'
    body = but(body, 'there is no other attempt, as it would start after the expires_in')
  end

  local job, v = P .. 'job:' .. id, stamp(r)
  local lines = remember(r, v, outcome)
  leases_left[#leases_left + 1] = id
  if r.ck then
    call('SREM', P .. 'key:' .. r.tenant .. ':' .. r.ck, id .. ':' .. r.token)
  end
  if r.slot then
    call('SREM', P .. 'slots:' .. r.slot, id .. ':' .. r.token)
  end
  if r.lk then
    give_up_all(id, r)
  end
  if outcome == 'released' then
    r.attempt = tonumber(r.attempt) - 1 -- refunded: the number is for people and policy, the token is the fence
  end
  move(id, r, to, v)
  if not token then
    call('HSET', job, 'token', '') -- whoever held it may finish its code, not the job
  end
  if lost and to ~= 'cancelled' then
    call('HSET', job, 'losses', r.losses)
  end

  if to == 'succeeded' then
    close(id, r, v, 'attempts', lines, 'result', body)
    if files ~= '' then
      call('HSET', job, 'files', files)
    end
  elseif to == 'failed' then
    close(id, r, v, 'attempts', lines, 'error', body)
  elseif to == 'cancelled' then
    close(id, r, v, 'attempts', lines)
  else
    if r.exp then
      call('ZADD', P .. 'expiries', r.exp, id)
    end
    if to == 'retrying' then
      r.due = MS + delay
      call('HSET', job, 'state', to, 'v', v, 'attempts', lines, 'due', r.due, 'error', body)
      put_off(id, r)
    else
      call('HSET', job, 'state', to, 'v', v, 'attempts', lines, 'attempt', r.attempt)
      if lost then
        call('HSET', job, 'error', body)
      end
      line_up(id, r) -- at its original due score, ahead of the backlog
    end
  end
  wake(r)
  return 'ok'
end

local function leave_leases()
  if #leases_left > 0 then
    call('ZREM', P .. 'leases', unpack(leases_left))
    leases_left = {}
  end
end
