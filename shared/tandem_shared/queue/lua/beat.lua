-- beat(worker, catalogue, draining, started, zombies, then id and token of each job held):
-- renews the leases that this worker still holds, also one that has ended but is not settled, or
-- that Redis has forgotten since it came back older. Attempts that began up to the stamp `started`
-- have started. Returns whether the worker is known (0: register again), then 'lost' or 'cancel'
-- and the id of each job whose code should stop. A job with a cancel request is not renewed: its
-- lease ends with the cancel grace.

local worker, catalogue = ARGV[4], ARGV[5]
local me = P .. 'worker:' .. worker
local known = call('EXISTS', me)
if known == 1 then
  call('HSET', me, 'draining', ARGV[6], 'zombies', ARGV[8])
  if tonumber(ARGV[7]) > tonumber(call('HGET', me, 'told') or 0) then
    call('HSET', me, 'told', ARGV[7])
  end
  call('ZADD', P .. 'workers', NOW_MS, worker)
  call('PEXPIRE', me, WORKER_TTL_MS)
  known = call('PEXPIRE', P .. 'tasks:' .. catalogue, TASKS_TTL_MS)
  call('PEXPIRE', P .. 'entries:' .. catalogue, TASKS_TTL_MS)
end

note_tick(call('HMGET', P .. 'clock', 'tick', 'grace'))
local out, renewed = { known }, {}
for at = 9, #ARGV, 2 do
  local id = ARGV[at]
  local r = call('HMGET', P .. 'job:' .. id, 'state', 'token', 'cancel')
  if (r[1] ~= 'running' or r[2] ~= ARGV[at + 1]) and not resume(id, ARGV[at + 1]) then
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
commit()
return out
