-- forget(id, tenant): a final job goes, with all that Redis has of it. Returns 1, 0 if the tenant
-- has no such job, or
-- -1 if it is not final. Nothing tells the ledger: a row of it that is to go, and not to come back,
--   is its own matter.

local id = ARGV[4]
local r = read(id)
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
