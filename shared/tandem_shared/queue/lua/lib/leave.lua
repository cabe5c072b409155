-- The exits: `leave` is the only way out of `running`, `drop` the only way from a waiting place to
-- a final state; both end in `finalize`. Only here does an attempt give back what it holds: lease,
-- slots of its concurrency key and its task's limit, and locks.

local function failure_json(type, message, attempt)
  local retryable = type == 'expired' and 'false' or 'true'
  return '{"type":"' .. type .. '","message":"' .. message .. '","retryable":' .. retryable
    .. ',"attempt":' .. attempt .. '}'
end

-- The failure with a reason appended to its message. The JSON need not be decoded: a quote within a
-- string has a backslash before it, so the text searched for can only be the end of the message.
local function with_reason(failure, reason)
  local at = string.find(failure, '","retryable":', 1, true)
  if not at then
    return failure
  end
  return string.sub(failure, 1, at - 1) .. '; ' .. reason .. string.sub(failure, at)
end

-- Whether no attempt may start any more at that time, ms.
local function expires_by(r, at)
  return r.exp and tonumber(r.exp) <= at
end

local KEY_WAITERS_READ = 16 -- waiting jobs read to find one to wake

-- A slot of a concurrency key is free: requeues the job that has waited longest for it. With
-- `limited`, the job woken before is now waiting for its task's limit; then jobs of tasks at their
-- limit are skipped, or all of them would move from the key's place to the limit's and back.
local function wake_key(r, limited)
  local place = P .. 'park:key:' .. r.tenant .. ':' .. r.ck
  local ids = call('ZRANGE', place, 0, KEY_WAITERS_READ - 1)
  for i = 1, #ids do
    local id = ids[i]
    local waiter = read_record(id)
    if waiter.state ~= 'waiting' then
      call('ZREM', place, id)
    elseif not (limited and at_limit(call('HGET', P .. 'job:' .. id, 'task'))) then
      call('ZREM', place, id)
      return requeue(id, waiter)
    end
  end
end

-- The task whose limit the job waits for or was woken for, nil if there was none.
local function limited_task(r)
  return r.park and string.match(r.park, '^limit:[^:]*:[^:]*:(.*)$')
end

-- What the job held or was woken for is free again: another job may start in its place.
local function wake_task(r)
  local task = r.slot or limited_task(r)
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

-- Writes the final state, then further fields and values. Sets the TTLs unless a ledger still has
-- to read the record; `acknowledge` sets them then.
local function finalize(id, r, v, ...)
  call('HSET', P .. 'job:' .. id, 'state', r.state, 'v', v, 'ended', v, ...)
  kept_bytes = kept_bytes + #select(select('#', ...), ...) -- result or error
  if not ledger_backlog() then
    set_ttls(id, r)
  end
end

-- Ends a job that is not running: cancelled, or failed with an error.
local function drop(id, r, to, failure)
  -- It may have been woken for a slot that the next job can use. A job that waits for its task's
  -- limit may have been woken by its key.
  local woken = r.state == 'queued' or r.state == 'waiting' and limited_task(r)
  call('ZREM', place_of(r), id)
  if r.exp then
    call('ZREM', P .. 'expiries', id)
  end
  local v = next_stamp(r)
  change_state(id, r, to, v)
  if to == 'cancelled' then
    finalize(id, r, v, 'cancel', v)
  else
    finalize(id, r, v, 'error', failure)
  end
  if woken then
    wake(r)
  end
end

-- The record's `attempts` with one more line; only the last MAX_SHOWN_ATTEMPTS lines are kept.
local function append_attempt(r, v, outcome)
  local worker = string.sub(r.token, #r.began + 2) -- the token is '<began>.<worker>'
  local line = r.attempt .. ' ' .. r.began .. ' ' .. v .. ' ' .. outcome .. ' ' .. worker .. '\n'
  local lines = r.attempts and r.attempts .. line or line
  if r.attempts then
    local _, count = string.gsub(lines, '\n', '')
    for _ = MAX_SHOWN_ATTEMPTS + 1, count do
      lines = string.sub(lines, string.find(lines, '\n', 1, true) + 1)
    end
  end
  return lines
end

-- Why a job whose worker was lost gets no other attempt; nil if it does.
local function last_loss(r)
  if r.losses >= 3 then
    return 'three workers were lost while they ran this job, so it is not run again'
  elseif tonumber(r.attempt) >= tonumber(r.max) then
    return 'the worker was lost while it ran the last attempt'
  end
end

local dropped_leases = {} -- removed by `drop_leases`, all at once

-- Ends an attempt. `token` nil: the holder is lost, its lease has ended. `to` is succeeded, failed,
-- cancelled, retrying (after `delay` ms), queued (handed back, uncharged) or lost. `body` is the
-- JSON of the result or the failure, `files` that of the published files, `reports` the number of
-- the attempt's last report. Returns 'ok', also for a repeat, which the record's last token shows;
-- the final state that the job has instead of `to`; 'lost' if another attempt has the job; 'behind'
-- if Redis lacks reports of this one; or 'gone'.
local function leave(id, token, to, outcome, body, delay, files, reports)
  local r = read_record(id, FINAL[to])
  if not r.state then
    return 'gone'
  end
  if token and r.token ~= token then
    return 'lost'
  end
  if r.state ~= 'running' then
    return not token and 'lost' or FINAL[r.state] and r.state ~= to and r.state or 'ok'
  end
  if token and reports ~= '0'
    and tonumber(call('HGET', P .. 'job:' .. id, 'oq') or 0) < tonumber(reports) then
    return 'behind'
  end

  local lost, asked = to == 'lost', to
  if r.cancel then
    to, outcome = 'cancelled', 'cancelled' -- a cancel request wins over every other outcome
  elseif lost then
    outcome = 'worker_lost'
    r.losses = tonumber(r.losses or 0) + 1
    local last = last_loss(r)
    to = last and 'failed' or 'queued'
    local message = last or 'the worker was lost while it ran this attempt'
    body = failure_json('worker_lost', message, r.attempt)
  elseif to == 'retrying' and tonumber(r.attempt) >= tonumber(r.max) then
    to = 'failed'
  elseif to == 'retrying' and expires_by(r, NOW_MS + delay) then
    to = 'failed'
    local reason = 'it is not retried, since the next attempt would start after expires_in'
    body = with_reason(body, reason)
  end

  local job, v = P .. 'job:' .. id, next_stamp(r)
  local lines = append_attempt(r, v, outcome)
  dropped_leases[#dropped_leases + 1] = id
  if r.ck then
    call('SREM', P .. 'key:' .. r.tenant .. ':' .. r.ck, id .. ':' .. r.token)
  end
  if r.slot then
    call('SREM', P .. 'slots:' .. r.slot, id .. ':' .. r.token)
  end
  if r.lk then
    release_locks(id, r)
  end
  if outcome == 'released' then
    r.attempt = tonumber(r.attempt) - 1 -- refunded: only the token is a fence
  end
  change_state(id, r, to, v)
  if not token then
    call('HSET', job, 'token', '') -- fences the lost holder, whose code may still run
  end
  if lost and to ~= 'cancelled' then
    call('HSET', job, 'losses', r.losses)
  end

  if to == 'succeeded' then
    finalize(id, r, v, 'attempts', lines, 'result', body)
    if files ~= '' then
      call('HSET', job, 'files', files)
    end
  elseif to == 'failed' then
    finalize(id, r, v, 'attempts', lines, 'error', body)
  elseif to == 'cancelled' then
    finalize(id, r, v, 'attempts', lines)
  else
    if r.exp then
      call('ZADD', P .. 'expiries', r.exp, id)
    end
    if to == 'retrying' then
      r.due = NOW_MS + delay
      call('HSET', job, 'state', to, 'v', v, 'attempts', lines, 'due', r.due, 'error', body)
      schedule(id, r)
    else
      call('HSET', job, 'state', to, 'v', v, 'attempts', lines, 'attempt', r.attempt)
      if lost then
        call('HSET', job, 'error', body)
      end
      enqueue(id, r) -- with its original due time, so ahead of the backlog
    end
  end
  wake(r)
  return token and FINAL[to] and to ~= asked and to or 'ok'
end

local function drop_leases()
  if #dropped_leases > 0 then
    call('ZREM', P .. 'leases', unpack(dropped_leases))
    dropped_leases = {}
  end
end
