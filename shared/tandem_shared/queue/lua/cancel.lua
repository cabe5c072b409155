-- cancel(id, tenant): whatever its state. One that has not started is cancelled at once; a running
-- one gets `GRACE` to obey, its worker is told, and its lease ends with the grace. Returns 1, or 0
-- if the tenant has no such job.

local id = ARGV[4]
local r = read(id)
if not r.state or r.tenant ~= ARGV[5] then
  return 0
end
if r.state == 'running' then
  if not r.cancel then
    local v = stamp(r)
    call('HSET', P .. 'job:' .. id, 'cancel', v, 'v', v)
    local ends = tonumber(call('ZSCORE', P .. 'leases', id) or MS)
    call('ZADD', P .. 'leases', 'XX', math.min(ends, MS + GRACE), id)
    call_worker(string.match(r.token, '%.(.*)$'), 'cancel ' .. id)
    tell(id, r, v)
  end
elseif not FINAL[r.state] then
  drop(id, r, 'cancelled')
end
commit()
return 1
