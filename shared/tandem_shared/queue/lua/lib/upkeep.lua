-- What time brings about: ended leases, due jobs, expiries, pauses. Every claim and tick does it
-- for the whole shard, so it depends on no particular worker or queue.

-- Processes refresh `tick`, an API once a second. If it is older than this, Redis was away or its
-- clock has jumped, and holders could not renew their leases. With very short leases the normal
-- second between ticks must not count as silence, hence the minimum.
local SILENCE_MS = math.max(LEASE_MS / 2, 2500)

-- Refreshes `tick`, given `tick` and `grace` of `clock`. Returns whether leases may be settled:
-- after a silence, not before holders had a lease's time to renew.
local function note_tick(c)
  local tick, grace = tonumber(c[1] or 0), tonumber(c[2] or 0)
  if tick - NOW_MS > LEASE_MS / 2 then -- the clock stepped back: shorten what ends too late now
    local far = call('ZRANGEBYSCORE', P .. 'leases', '(' .. LEASE_END, '+inf', 'LIMIT', 0, 500)
    for i = 1, #far do
      call('ZADD', P .. 'leases', LEASE_END, far[i])
    end
    local gates = call('ZRANGE', P .. 'gates', 0, 499)
    for i = 1, #gates do
      call('ZADD', P .. 'gates', NOW_MS, gates[i])
    end
    grace = math.min(grace, NOW_MS + LEASE_MS)
    if #far < 500 then
      tick = NOW_MS
      call('HSET', P .. 'clock', 'tick', NOW_MS, 'grace', grace)
    end
  elseif NOW_MS - tick > SILENCE_MS then
    grace = NOW_MS + LEASE_MS
    call('HSET', P .. 'clock', 'tick', NOW_MS, 'grace', grace)
  elseif NOW_MS > tick then
    call('HSET', P .. 'clock', 'tick', NOW_MS)
  end
  return NOW_MS >= grace
end

local function settle_leases(max_jobs)
  local ended = call('ZRANGEBYSCORE', P .. 'leases', '-inf', NOW_MS, 'LIMIT', 0, max_jobs)
  for i = 1, #ended do
    if leave(ended[i], nil, 'lost') ~= 'ok' then
      dropped_leases[#dropped_leases + 1] = ended[i] -- it has no record
    end
  end
  drop_leases()
  return #ended
end

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
local function upkeep()
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
