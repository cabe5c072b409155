-- submit(limit, kinds and jobs, see enter.lua): up to 500 jobs enter, while fewer than `limit` of
-- their queue are not final (0: any number). Returns five values a job.

if followed() and call('XLEN', P .. 'events') >= followed() then
  return redis.error_reply('BACKLOG the ledger is too far behind')
end

-- How many jobs of each queue are not final, those that enter now among them.
local limit, open = tonumber(ARGV[4]), {}
local short = call('HGET', P .. 'clock', 'full')

local function room_for(queue)
  if short then
    return false, 'short'
  elseif limit == 0 then
    return true
  end
  if not open[queue] then
    local fields, sum = {}, 0
    for i = 1, #OPEN do
      fields[i] = queue .. ' ' .. OPEN[i]
    end
    local kept = call('HMGET', P .. 'counts', unpack(fields))
    for i = 1, #OPEN do
      sum = sum + (tonumber(kept[i] or 0))
    end
    open[queue] = sum
  end
  if open[queue] >= limit then
    return false, 'full'
  end
  open[queue] = open[queue] + 1
  return true
end

local out = {}
for at = after_kinds(5), #ARGV, JOB do
  local entered = enter(5, at, room_for)
  for i = 1, 5 do
    out[#out + 1] = entered[i]
  end
end
commit()
return out
