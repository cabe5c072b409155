-- lock(id, token, number, name, fence): an acquisition of a running job; `number` is unique within
-- the attempt. Returns 'held' and the fence, also to a repeat; 'wait' and the ms after which to ask
-- again if no notification comes before; or 'lost' if another attempt has the job. With `fence`,
-- not '0', nothing is taken: 'lost' also if this acquisition does not hold the lock.

local id, token, number, name, known_fence = unpack(ARGV, 4, 8)
local job = P .. 'job:' .. id
local r = call('HMGET', job, 'state', 'token', 'tenant', 'lk')
if r[1] ~= 'running' or r[2] ~= token then
  return { 'lost', '0' }
end
local tenant, acquisitions = r[3], r[4] or ''
local lock = P .. 'lock:' .. tenant .. ':' .. name
local me = id .. ' ' .. token .. ' ' .. number

-- Released before this call arrived: taking the lock now would hold it until the attempt ends.
if string.find('\n' .. acquisitions, '\n' .. number .. ' \n', 1, true) then
  return { 'wait', int(LEASE_MS) }
end

local holder = call('HGET', lock, 'holder')
if known_fence ~= '0' then
  return holder == me and { 'held', known_fence } or { 'lost', '0' }
end
local ends = NOW_MS + LEASE_MS
if holder and holder ~= me then
  local other = string.match(holder, '^%S+')
  ends = tonumber(call('ZSCORE', P .. 'leases', other) or NOW_MS)
  if not holder_runs(holder) then
    hand_over_lock(tenant, name)
  elseif other ~= id and ends <= NOW_MS
    and note_tick(call('HMGET', P .. 'clock', 'tick', 'grace')) then
    leave(other, nil, 'lost') -- frees the lock without waiting for a tick
    drop_leases()
  end
  holder = call('HGET', lock, 'holder')
end

local answer
if not holder then
  answer = { 'held', grant_lock(tenant, name, me) }
elseif holder == me then
  answer = { 'held', call('HGET', lock, 'fence') }
else
  call('ZADD', P .. 'waits:' .. tenant .. ':' .. name, 'NX', NOW_STAMP, me)
  answer = { 'wait', int(math.max(0, ends - NOW_MS)) }
end
if not string.find('\n' .. acquisitions, '\n' .. number .. ' ', 1, true) then
  call('HSET', job, 'lk', acquisitions .. number .. ' ' .. name .. '\n')
end
commit()
return answer
