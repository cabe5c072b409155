-- report(limit, then id, token, number, type, body each): progress, log lines and output of running jobs, fenced.
-- `number` grows by one with each report of an attempt: a repeated one is not written twice. A body is JSON, output and
-- log bodies one value a line. Returns 'ok', 'lost', or 'full' above `limit` bytes a job.

local limit = tonumber(ARGV[4])
local out = {}
for at = 5, #ARGV, 5 do
  local id, token, number, type, body = unpack(ARGV, at, at + 4)
  local job = P .. 'job:' .. id
  local a = call('HMGET', job, 'state', 'token', 'v', 'o', 'ob', 'oq', 'attempt')
  local r = { state = a[1], token = a[2], v = a[3], o = a[4], ob = a[5], oq = a[6], attempt = a[7] }
  local size = tonumber(r.ob or 0) + #body
  if r.state ~= 'running' or r.token ~= token then
    out[#out + 1] = 'lost'
  elseif tonumber(r.oq or 0) >= tonumber(number) then
    out[#out + 1] = 'ok'
  elseif size > limit then
    out[#out + 1] = 'full'
  else
    local v = stamp(r)
    -- The entry's id is the stamp, so that output, progress and states have one order.
    call('XADD', P .. 'out:' .. id, v .. '-0', 't', type, 'a', r.attempt, 'd', body)
    if type == 'progress' then
      call('HSET', job, 'o', v, 'ob', size, 'oq', number, 'v', v, 'progress', body)
    else
      call('HSET', job, 'o', v, 'ob', size, 'oq', number)
    end
    call('PUBLISH', P .. 'news:' .. id, type)
    out[#out + 1] = 'ok'
  end
end
return out
