-- adopt(number of jobs, their arq ids, kinds and jobs, see enter.lua): jobs of plain arq clients
-- become ours. One that is no longer in arq's queue was adopted by another worker. An arq id is an
-- idempotency key, so a job enqueued again under its id is not run twice.

local out = {}
local start = 5 + tonumber(ARGV[4])
local jobs = after_kinds(start)
for i = 1, tonumber(ARGV[4]) do
  local foreign = ARGV[4 + i]
  if call('ZREM', 'arq:queue', foreign) == 1 then
    call('DEL', 'arq:job:' .. foreign, 'arq:retry:' .. foreign)
    out[#out + 1] = enter(start, jobs + (i - 1) * JOB)[1]
  else
    out[#out + 1] = ''
  end
end
commit()
return out
