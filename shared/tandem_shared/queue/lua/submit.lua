-- submit(max unfinished, then templates and jobs as in enter.lua): enters up to 500 jobs while
-- their queue has fewer than `max unfinished` jobs that are not final (0: no limit). Returns five
-- values per job, see `enter`.

if ledger_backlog() then
  local c = call('HMGET', P .. 'clock', 'written', 'read')
  if tonumber(c[1] or 0) - tonumber(c[2] or 0) >= ledger_backlog() then
    return redis.error_reply('BACKLOG the ledger is too far behind')
  end
end

local max_unfinished = tonumber(ARGV[4])
local memory_full = call('HGET', P .. 'clock', 'full')
local unfinished = {} -- jobs of each queue, including those that enter now

local function refusal(queue)
  if memory_full then
    return 'short'
  elseif max_unfinished == 0 then
    return nil
  end
  if not unfinished[queue] then
    local fields, sum = {}, 0
    for i = 1, #OPEN do
      fields[i] = queue .. ' ' .. OPEN[i]
    end
    local kept = call('HMGET', P .. 'counts', unpack(fields))
    for i = 1, #OPEN do
      sum = sum + tonumber(kept[i] or 0)
    end
    unfinished[queue] = sum
  end
  if unfinished[queue] >= max_unfinished then
    return 'full'
  end
  unfinished[queue] = unfinished[queue] + 1
end

local out = {}
for at = first_job(5), #ARGV, JOB_ARGS do
  local entered = enter(5, at, refusal)
  for i = 1, 5 do
    out[#out + 1] = entered[i]
  end
end
commit()
return out
