-- recent_jobs(max jobs, max bytes): ids of the jobs that changed last, newest first, from the last
-- `max bytes` of events.

local max_jobs, left = tonumber(ARGV[4]), tonumber(ARGV[5])
local out, seen, to = {}, {}, '+'
while true do
  local entries = redis.call('XREVRANGE', KEYS[1] .. 'events', to, '-', 'COUNT', 20)
  for i = 1, #entries do
    local lines = {}
    for id in string.gmatch('\n' .. entries[i][2][2], '\n(%S+)') do
      lines[#lines + 1] = id
    end
    for j = #lines, 1, -1 do
      if #out < max_jobs and not seen[lines[j]] then
        seen[lines[j]] = true
        out[#out + 1] = lines[j]
      end
    end
    left = left - #entries[i][2][2]
    if #out == max_jobs or left <= 0 then
      return out
    end
  end
  if #entries < 20 then
    return out
  end
  local ms, number = string.match(entries[20][1], '^(%d+)-(%d+)$')
  if number ~= '0' then
    to = ms .. '-' .. string.format('%.0f', number - 1)
  else
    to = string.format('%.0f', ms - 1)
  end
end
