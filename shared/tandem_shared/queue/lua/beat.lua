-- beat(worker, catalogue, draining, then id and token of each job held): renews the leases that
-- still hold, also an ended one that nobody has settled yet; never adds one. Returns known (0:
-- register again), then 'lost' or 'cancel' and the id of each job whose code should stop. A job
-- that is to be cancelled is not renewed: its lease ends with its grace.

local worker, catalogue = ARGV[4], ARGV[5]
local me = P .. 'worker:' .. worker
local known = call('EXISTS', me)
if known == 1 then
  call('HSET', me, 'draining', ARGV[6])
  call('ZADD', P .. 'workers', MS, worker)
  call('PEXPIRE', me, ALIVE)
  known = call('PEXPIRE', P .. 'tasks:' .. catalogue, 86400000)
end

pulse(call('HMGET', P .. 'clock', 'tick', 'grace'))
local out, renewed = { known }, {}
for at = 7, #ARGV, 2 do
  local id = ARGV[at]
  local r = call('HMGET', P .. 'job:' .. id, 'state', 'token', 'cancel')
  if r[1] ~= 'running' or r[2] ~= ARGV[at + 1] then
    out[#out + 1] = 'lost'
    out[#out + 1] = id
  elseif r[3] then
    out[#out + 1] = 'cancel'
    out[#out + 1] = id
  else
    renewed[#renewed + 1] = LEASE_END
    renewed[#renewed + 1] = id
  end
end
if #renewed > 0 then
  call('ZADD', P .. 'leases', 'XX', unpack(renewed))
end
return out
