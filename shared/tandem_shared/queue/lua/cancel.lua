-- cancel(id, tenant): cancels a job in any state. One that is not running is cancelled at once. For
-- a running one the worker is notified, and the lease ends with the cancel grace. Returns 1, or 0
-- if the tenant has no such job.

local id = ARGV[4]
local r = read_record(id)
if not r.state or r.tenant ~= ARGV[5] then
  return 0
end
if r.state == 'running' then
  if not r.cancel then
    local v = next_stamp(r)
    call('HSET', P .. 'job:' .. id, 'cancel', v, 'v', v)
    local ends = tonumber(call('ZSCORE', P .. 'leases', id) or NOW_MS)
    call('ZADD', P .. 'leases', 'XX', math.min(ends, NOW_MS + GRACE_MS), id)
    ring_worker(string.match(r.token, '%.(.*)$'), 'cancel ' .. id .. ' ' .. r.token)
    publish(id, r, v)
  end
elseif not FINAL[r.state] then
  drop(id, r, 'cancelled')
end
commit()
return 1
