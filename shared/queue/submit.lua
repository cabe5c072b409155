-- submit(jobs…): up to 500 jobs enter. Returns four values a job, see enter.lua.

if followed() and call('XLEN', P .. 'events') >= followed() then
  return redis.error_reply('BACKLOG the ledger is too far behind')
end

local out = {}
for at = 4, #ARGV, WIDTH do
  local entered = enter(at)
  for i = 1, 4 do
    out[#out + 1] = entered[i]
  end
end
commit()
return out
