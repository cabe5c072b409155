-- What Redis has forgotten because it came back older than it was, and a worker knows.

local function any_version()
  return math.huge
end

-- Lets an attempt run again under its token, if the record is older than the token: Redis has lost
-- the claim. `ended`: the attempt's final outcome was accepted, so it goes before all that has
-- happened to the job since Redis came back. Returns whether the attempt runs.
local function resume(id, token, ended)
  local r = read_full(id)
  local stamp, worker = string.match(token, '^(%d+)%.(.*)$')
  if not r.state or FINAL[r.state] or not stamp then
    return false
  end
  local known = r.state == 'running' or tonumber(r.v) >= tonumber(stamp)
  if not ended and (known or obstacle(r, any_version)) then
    return false
  end
  if r.cancel then
    call('HDEL', P .. 'job:' .. id, 'cancel') -- requested after the end
  end
  if r.state == 'running' then
    leave(id, r.token, 'queued', 'released', '', 0, '', '0')
    drop_leases()
    r = read_full(id)
  elseif r.state == 'scheduled' or r.state == 'retrying' then
    call('ZREM', place_of(r), id)
    -- Before the start, so that the attempt's reports return under their stamps.
    local v = tonumber(stamp) - 1 > last_stamp(r) and int(stamp - 1) or next_stamp(r)
    change_state(id, r, 'queued', v)
    call('HSET', P .. 'job:' .. id, 'state', 'queued', 'v', v)
  end
  call('ZREM', place_of(r), id)
  start_attempt(id, r, worker, {}, {}, stamp)
  call('ZADD', P .. 'leases', LEASE_END, id)
  return true
end
