-- Processes what is due: ended leases, due jobs, expiries, gates of limits.

-- Enqueues jobs of this place (<queue>:<priority>) whose time has come.
local function enqueue_due(place, max_jobs)
  local later = P .. 'later:' .. place
  local due = call('ZRANGEBYSCORE', later, '-inf', NOW_MS, 'LIMIT', 0, max_jobs)
  for i = 1, #due do
    local id = due[i]
    local r = read_record(id)
    if r.state == 'scheduled' or r.state == 'retrying' then
      requeue(id, r)
    end
  end
  if #due > 0 then
    call('ZREM', later, unpack(due))
  end
  local head = call('ZRANGE', later, 0, 0, 'WITHSCORES')
  if head[2] then
    call('ZADD', P .. 'agenda', head[2], place)
  else
    call('ZREM', P .. 'agenda', place)
  end
  return #due
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
  return #over
end

-- What every claim and tick does, whatever its queues. Returns the number of settled leases,
-- whether jobs may expire now, `turn` of `clock`, and how much was done at most.
local function process_due()
  local c = call('HMGET', P .. 'clock', 'tick', 'grace', 'turn')
  local settled, expired, calm = 0, 0, note_tick(c)
  if calm then
    settled = settle_leases(100)
    expired = fail_expired(100)
  end
  open_gates(50)
  return settled, calm, tonumber(c[3] or 0), math.max(settled, expired)
end
