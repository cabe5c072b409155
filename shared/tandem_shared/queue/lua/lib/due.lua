-- Processes what is due: ended leases, due jobs, expiries, gates of limits, pauses. Every claim and
-- tick does it for the whole shard, so it depends on no particular worker or queue.

local function enqueue_due(max_jobs)
  local due = call('ZRANGEBYSCORE', P .. 'later', '-inf', NOW_MS, 'LIMIT', 0, max_jobs)
  for i = 1, #due do
    local id = due[i]
    local r = read_record(id)
    if r.state == 'scheduled' or r.state == 'retrying' then
      requeue(id, r)
    end
  end
  if #due > 0 then
    call('ZREM', P .. 'later', unpack(due))
  end
end

-- Fails a waiting job whose expires_in is over and returns whether it is. The failure of the last
-- attempt stays the error's cause. Claims call it too, since `fail_expired` has a limit per call.
local function fail_if_expired(id, r)
  local over = expires_by(r, NOW_MS)
  if over then
    local last = r.began and call('HGET', P .. 'job:' .. id, 'error')
    local reason = r.began and 'no further attempt started within expires_in'
      or 'the job did not start within expires_in'
    local failure = last and with_reason(last, reason) or failure_json('expired', reason, r.attempt)
    drop(id, r, 'failed', failure)
  end
  return over
end

local function fail_expired(max_jobs)
  local over = call('ZRANGEBYSCORE', P .. 'expiries', '-inf', NOW_MS, 'LIMIT', 0, max_jobs)
  for i = 1, #over do
    local r = read_record(over[i])
    local waits = r.state and r.state ~= 'running' and not FINAL[r.state]
    if not waits or not fail_if_expired(over[i], r) then
      call('ZREM', P .. 'expiries', over[i])
    end
  end
end

-- Parks jobs of paused queues and brings those of resumed ones back, up to `max_jobs` per place.
local function follow_pauses(max_jobs)
  is_paused('')
  for queue, on in pairs(paused_queues) do
    local left = false
    for _, prio in ipairs(HIGH_FIRST) do
      local due = P .. 'q:' .. queue .. ':' .. prio
      local from = on == '1' and due or P .. 'park:queue:' .. queue .. ':' .. prio
      local ids = call('ZRANGE', from, 0, max_jobs - 1)
      if #ids > 0 then
        call('ZREM', from, unpack(ids))
      end
      for i = 1, #ids do
        local r = read_record(ids[i])
        if r.state == 'queued' and not fail_if_expired(ids[i], r) then
          park_paused(ids[i], r)
          wake(r) -- it may have been woken for a slot that it does not use now
        elseif r.state == 'waiting' then
          requeue(ids[i], r)
        end
      end
      left = left or #ids == max_jobs
    end
    if on == '0' and not left then
      call('HDEL', P .. 'paused', queue)
    end
  end
end

-- Returns how many leases were settled, and `turn` of `clock`.
local function process_due()
  local c = call('HMGET', P .. 'clock', 'tick', 'grace', 'turn')
  local settled = 0
  if note_tick(c) then
    settled = settle_leases(100)
  end
  enqueue_due(200)
  fail_expired(100)
  open_gates(50)
  follow_pauses(100)
  return settled, tonumber(c[3] or 0)
end
