-- What time brings about, done by whoever comes by: ended leases, due jobs, expiries. Needs no
-- worker and no queue.

-- Processes refresh a stamp, an API once a second. One that is older than half a lease says that
-- Redis was away, or that its clock has jumped: holders could not renew, so no lease is settled
-- before they had the time to. Where leases are so short that each second would be a silence, it
-- has to last a little longer. Returns whether leases may be settled.
local SILENCE = math.max(LEASE / 2, 2500)

local function pulse(c)
  local tick, grace = tonumber(c[1] or 0), tonumber(c[2] or 0)
  if tick - MS > LEASE / 2 then -- the clock stepped back: leases would hold for the length of the step
    local far = call('ZRANGEBYSCORE', P .. 'leases', '(' .. int(MS + LEASE), '+inf', 'LIMIT', 0, 500)
    for i = 1, #far do
      call('ZADD', P .. 'leases', MS + LEASE, far[i])
    end
    local gates = call('ZRANGE', P .. 'gates', 0, 499)
    for i = 1, #gates do
      call('ZADD', P .. 'gates', MS, gates[i])
    end
    grace = math.min(grace, MS + LEASE)
    if #far < 500 then
      tick = MS
      call('HSET', P .. 'clock', 'tick', MS, 'grace', grace)
    end
  elseif MS - tick > SILENCE then
    grace = MS + LEASE
    call('HSET', P .. 'clock', 'tick', MS, 'grace', grace)
  elseif MS > tick then
    call('HSET', P .. 'clock', 'tick', MS)
  end
  return MS >= grace
end

local function settle(limit)
  local ended = call('ZRANGEBYSCORE', P .. 'leases', '-inf', MS, 'LIMIT', 0, limit)
  for i = 1, #ended do
    if leave(ended[i], nil, 'lost') ~= 'ok' then
      leases_left[#leases_left + 1] = ended[i] -- no record behind it
    end
  end
  leave_leases()
  return #ended
end

local function fall_due(limit)
  local due = call('ZRANGEBYSCORE', P .. 'later', '-inf', MS, 'LIMIT', 0, limit)
  for i = 1, #due do
    local id = due[i]
    local r = read(id)
    if r.state == 'scheduled' or r.state == 'retrying' then
      requeue(id, r)
    end
  end
  if #due > 0 then
    call('ZREM', P .. 'later', unpack(due))
  end
end

-- Whether a job that waits, for its first attempt or for another, has expired; it is then final,
-- and what the last attempt failed with is still why. A claim asks too, since `expire` works in
-- portions.
local function expired(id, r)
  local over = late(r, MS)
  if over then
    local last = r.began and call('HGET', P .. 'job:' .. id, 'error')
    local why = r.began and 'no other attempt started within the expires_in'
      or 'the job was not started within its expires_in'
    drop(id, r, 'failed', last and but(last, why) or explain('expired', why, r.attempt))
  end
  return over
end

local function expire(limit)
  local over = call('ZRANGEBYSCORE', P .. 'expiries', '-inf', MS, 'LIMIT', 0, limit)
  for i = 1, #over do
    local r = read(over[i])
    if not r.state or r.state == 'running' or FINAL[r.state] or not expired(over[i], r) then
      call('ZREM', P .. 'expiries', over[i])
    end
  end
end

-- Jobs of a paused queue go aside, those of a resumed one come back, in portions.
local function follow_pauses(most)
  paused('')
  for queue, on in pairs(pauses) do
    local left = false
    for _, prio in ipairs(HIGH_FIRST) do
      local lined, aside = P .. 'q:' .. queue .. ':' .. prio, P .. 'park:queue:' .. queue .. ':' .. prio
      local from = on == '1' and lined or aside
      local ids = call('ZRANGE', from, 0, most - 1)
      if #ids > 0 then
        call('ZREM', from, unpack(ids))
      end
      for i = 1, #ids do
        local r = read(ids[i])
        if r.state == 'queued' and not expired(ids[i], r) then
          hold(ids[i], r)
          wake(r) -- it may have been woken for a slot that it does not use now
        elseif r.state == 'waiting' then
          requeue(ids[i], r)
        end
      end
      left = left or #ids == most
    end
    if on == '0' and not left then
      call('HDEL', P .. 'paused', queue)
    end
  end
end

local function keep_up()
  local c = call('HMGET', P .. 'clock', 'tick', 'grace', 'turn')
  local settled = 0
  if pulse(c) then
    settled = settle(100)
  end
  fall_due(200)
  expire(100)
  open_gates(50)
  follow_pauses(100)
  return settled, tonumber(c[3] or 0)
end
