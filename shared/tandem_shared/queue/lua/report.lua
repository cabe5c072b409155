-- report(limit, long, most, then id, token, number, type, body each): progress, log lines and
-- output of running jobs, fenced. `number` grows by one with each report of an attempt: a repeated
-- one is not written twice. A body is JSON, output and log bodies one value a line. Returns 'ok';
-- 'long', which is ok with `long` bytes or more in the job's stream, so that archive should be
-- called; 'wait', not written before it has been, since there would be more than `most`; 'full',
-- above `limit` bytes a job; or 'lost'.

local limit, long, most = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local out, waits, told = {}, {}, {}
for at = 7, #ARGV, 5 do
  local id, token, number, type, body = unpack(ARGV, at, at + 4)
  local job = P .. 'job:' .. id
  local a = call('HMGET', job, 'state', 'token', 'v', 'o', 'ob', 'oq', 'attempt', 'ot')
  local r = { state = a[1], token = a[2], v = a[3], o = a[4], ob = a[5], oq = a[6], attempt = a[7] }
  local size, before = tonumber(r.ob or 0) + #body, tonumber(a[8] or 0)
  local tail = before + #body + ENTRY_BYTES
  if r.state ~= 'running' or r.token ~= token then
    out[#out + 1] = 'lost'
  elseif tonumber(r.oq or 0) >= tonumber(number) then
    out[#out + 1] = 'ok'
  elseif size > limit then
    out[#out + 1] = 'full'
  elseif waits[id] or (tail > most and before > 0) then
    waits[id] = true -- the next ones too: they must not be written before this one
    out[#out + 1] = 'wait'
  else
    local v = stamp(r)
    -- The entry's id is the stamp, so that output, progress and states have one order. `p` is the
    -- stamp of the entry before: it shows a reader that there is none between them.
    call('XADD', P .. 'out:' .. id, v .. '-0', 't', type, 'a', r.attempt, 'p', r.o or 0, 'd', body)
    if type == 'progress' then
      call('HSET', job, 'o', v, 'ob', size, 'oq', number, 'ot', tail, 'v', v, 'progress', body)
    else
      call('HSET', job, 'o', v, 'ob', size, 'oq', number, 'ot', tail)
    end
    if told[id] ~= type then
      told[id] = type
      call('PUBLISH', P .. 'news:' .. id, type)
    end
    out[#out + 1] = tail >= long and 'long' or 'ok'
  end
end
return out
