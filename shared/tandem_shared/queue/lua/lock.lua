-- lock(id, token, number, name): an acquisition of a running job, fenced; `number` tells it from
-- the others of its attempt. Returns 'held' and the fence, also to a repeat; 'wait' and the ms
-- after which to ask again, should no news come before; or 'lost'.

local id, token, number, name = unpack(ARGV, 4, 7)
local job = P .. 'job:' .. id
local r = call('HMGET', job, 'state', 'token', 'tenant', 'lk')
if r[1] ~= 'running' or r[2] ~= token then
  return { 'lost', '0' }
end
local tenant, known = r[3], r[4] or ''
local lock = P .. 'lock:' .. tenant .. ':' .. name
local me = id .. ' ' .. token .. ' ' .. number

-- Given up before this call arrived: nobody would ever free what it took.
if string.find('\n' .. known, '\n' .. number .. ' \n', 1, true) then
  return { 'wait', int(LEASE) }
end

local holder = call('HGET', lock, 'holder')
local ends = MS + LEASE
if holder and holder ~= me then
  local other = string.match(holder, '^%S+')
  ends = tonumber(call('ZSCORE', P .. 'leases', other) or MS)
  if not holds_still(holder) then
    hand_on(tenant, name)
  elseif other ~= id and ends <= MS and pulse(call('HMGET', P .. 'clock', 'tick', 'grace')) then
    leave(other, nil, 'lost') -- nobody else need come by for the lock to be free
    leave_leases()
  end
  holder = call('HGET', lock, 'holder')
end

local answer
if not holder then
  answer = { 'held', grant(tenant, name, me) }
elseif holder == me then
  answer = { 'held', call('HGET', lock, 'fence') }
else
  call('ZADD', P .. 'waits:' .. tenant .. ':' .. name, 'NX', NOW, me)
  answer = { 'wait', int(math.max(0, ends - MS)) }
end
if not string.find('\n' .. known, '\n' .. number .. ' ', 1, true) then
  call('HSET', job, 'lk', known .. number .. ' ' .. name .. '\n')
end
commit()
return answer
