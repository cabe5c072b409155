-- adopt(number of jobs, their arq ids, then templates and jobs as in enter.lua): moves jobs of
-- plain arq clients over. Returns our id for each, '' if another worker was first. The arq id is
-- the idempotency key, so a job that is enqueued again under its id does not run twice.

local jobs = tonumber(ARGV[4])
local start = 5 + jobs
local first = first_job(start)
local out = {}
for i = 1, jobs do
  local arq_id = ARGV[4 + i]
  if call('ZREM', 'arq:queue', arq_id) == 1 then
    call('DEL', 'arq:job:' .. arq_id, 'arq:retry:' .. arq_id)
    out[i] = enter(start, first + (i - 1) * JOB_ARGS)[1]
  else
    out[i] = ''
  end
end
commit()
return out
