-- forget(id, tenant): deletes a final job and all that Redis has of it. Returns 1, 0 if the tenant
-- has no such job, or -1 if it is not final. No event is written: the caller deletes the ledger's
-- row itself.

local id = ARGV[4]
local r = read_record(id)
if not r.state or r.tenant ~= ARGV[5] then
  return 0
end
if not FINAL[r.state] then
  return -1
end
call('UNLINK', P .. 'job:' .. id, P .. 'out:' .. id, P .. 'cold:' .. id, P .. 'steps:' .. id)
if r.idem and string.match(call('GET', P .. 'idem:' .. r.idem) or '', '^%S+') == id then
  call('UNLINK', P .. 'idem:' .. r.idem)
end
return 1
