-- When a lease ends: every process refreshes the clock's `tick`, and leases are settled only while
-- holders have been able to renew them.

-- Processes refresh `tick`, an API once a second. If it is older than this, Redis was away or its
-- clock has jumped, and holders could not renew their leases. With very short leases the normal
-- second between ticks must not count as silence, hence the minimum.
local SILENCE_MS = math.max(LEASE_MS / 2, 2500)

local STEP_JOBS = 5000 -- of each place, the first ones, moved after a step of the clock

-- The clock stepped back by `ms`: what is a duration from the past would take that much longer.
-- Times that a client gave as such (`run_at`) stay.
local function step_back(ms)
  local places = call('ZRANGE', P .. 'agenda', 0, -1)
  for i = 1, #places do
    local later = P .. 'later:' .. places[i]
    local ids = call('ZRANGE', later, 0, STEP_JOBS - 1)
    for j = 1, #ids do
      local job = P .. 'job:' .. ids[j]
      local a = call('HMGET', job, 'due', 'at_time')
      if a[1] and not a[2] then
        local due = int(math.max(NOW_MS, a[1] - ms))
        call('HSET', job, 'due', due)
        call('ZADD', later, due, ids[j])
      end
    end
    local head = call('ZRANGE', later, 0, 0, 'WITHSCORES')
    if head[2] then
      call('ZADD', P .. 'agenda', head[2], places[i])
      ring(string.match(places[i], '^[^:]*'))
    end
  end
  local ids = call('ZRANGE', P .. 'expiries', 0, STEP_JOBS - 1)
  for i = 1, #ids do
    local over = call('HGET', P .. 'job:' .. ids[i], 'exp')
    if over then
      over = int(over - ms)
      call('HSET', P .. 'job:' .. ids[i], 'exp', over)
      call('ZADD', P .. 'expiries', over, ids[i])
    end
  end
end

-- Refreshes `tick`, given `tick` and `grace` of `clock`. Returns whether leases may be settled and
-- jobs expire: after a silence, not before holders had a lease's time to renew.
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
    local leapt = grace -- the clock of a moment ago had jumped if it is before this
    grace = math.min(grace, NOW_MS + LEASE_MS)
    if #far < 500 then
      local leap = tick < leapt and tonumber(call('HGET', P .. 'clock', 'leap') or 0) or 0
      if tick - NOW_MS > leap then -- else it comes back from a jump forwards
        step_back(tick - NOW_MS - leap)
      end
      tick = NOW_MS
      call('HSET', P .. 'clock', 'tick', NOW_MS, 'grace', grace)
    end
  elseif NOW_MS - tick > SILENCE_MS then
    grace = NOW_MS + LEASE_MS
    call('HSET', P .. 'clock', 'tick', NOW_MS, 'grace', grace, 'leap', NOW_MS - tick)
  elseif NOW_MS > tick then
    call('HSET', P .. 'clock', 'tick', NOW_MS)
  end
  return NOW_MS >= grace
end

-- Ends the attempts whose lease has ended, as lost. Returns how many there were.
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
