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

-- The limit that the job waits for or was brought back by, nil if there was none.
local function parked_limit(r)
  return r.park and string.match(r.park, '^limit:[^:]*:[^:]*:(.*)$')
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
  -- It may have been brought back for a slot that the next job can use.
  for _, name in pairs({ key_of(r), parked_limit(r) }) do
    serve(name, 1)
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

-- What the loss of its worker means for a job. Returns whether the attempt is charged, and why it
-- was the last one, nil if another follows.
--
-- One that was claimed ahead is charged only if the worker has told that it started; if it has not,
-- the job is not claimed ahead again. The same holds for any that had not started by a heartbeat
-- well after its claim: its worker was blocked, or has not read the reply. A suspect's loss counts
-- only if the job ran alone: beside others, one of these may be the cause, and the job runs alone
-- the next time.
local function judge_loss(r)
  local worker = string.match(r.token, '%.(.*)$')
  local w = call('HMGET', P .. 'worker:' .. worker, 'begun', 'beside', 'told')
  local began, told = tonumber(r.began), tonumber(w[3] or 0)
  local beat = tonumber(call('ZSCORE', P .. 'workers', worker) or 0)
  -- Half of the time between two heartbeats: a job that kills its worker at once is charged.
  local delayed = beat - began / 1000 > LEASE_MS / 6
  if w[1] and began > told and (delayed or began > tonumber(w[1])) then
    r.unstarted = true
    return false
  end
  r.losses = tonumber(r.losses or 0) + 1
  if r.losses == 3 and w[2] == '1' then
    return false
  elseif r.losses >= 3 then
    return true, 'three workers were lost while they ran this job, so it is not run again'
  elseif tonumber(r.attempt) >= tonumber(r.max) then
    return true, 'the worker was lost while it ran the last attempt'
  end
  return true
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

  local lost, asked, charged = to == 'lost', to, outcome ~= 'released'
  if r.cancel then
    to, outcome = 'cancelled', 'cancelled' -- a cancel request wins over every other outcome
  elseif lost then
    local last
    charged, last = judge_loss(r)
    to, outcome = last and 'failed' or 'queued', r.unstarted and 'released' or 'worker_lost'
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
  local limited = r.ck or r.slot
  local names = limited and { key_of(r) or r.slot, r.ck and r.slot } or {} -- it ran under these
  for i = 1, #names do
    call('SREM', P .. 'slots:' .. names[i], id .. ':' .. r.token)
  end
  if r.lk then
    release_locks(id, r)
  end
  if not charged and to == 'queued' then
    r.attempt = tonumber(r.attempt) - 1 -- refunded: only the token is a fence
  end
  change_state(id, r, to, v)
  if not token then
    call('HSET', job, 'token', '') -- fences the lost holder, whose code may still run
  end
  if r.unstarted then
    call('HSET', job, 'unstarted', '1')
  elseif lost and to ~= 'cancelled' then
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
      if lost and not r.unstarted then
        call('HSET', job, 'error', body)
      end
      enqueue(id, r) -- with its original due time, so ahead of the backlog
    end
  end
  for i = 1, #names do
    serve(names[i], 1)
  end
  if is_suspect(r) then -- its worker may run the next one
    workers_to_wake[string.match(r.token, '%.(.*)$')] = true
  end
  return token and FINAL[to] and to ~= asked and to or 'ok'
end

local function drop_leases()
  if #dropped_leases > 0 then
    call('ZREM', P .. 'leases', unpack(dropped_leases))
    dropped_leases = {}
  end
end
