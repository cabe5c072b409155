-- oldest_due(queues…): the time, ms, then for each queue when its oldest due job became due, or ''.

local now = CLOCK()
local out = { string.format('%.0f', now[1] * 1000 + math.floor(now[2] / 1000)) }
for at = 4, #ARGV do
  local oldest = ''
  for _, prio in ipairs({ 'high', 'normal', 'low' }) do
    local key = KEYS[1] .. 'q:' .. ARGV[at] .. ':' .. prio
    local head = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')
    if head[2] and (oldest == '' or tonumber(head[2]) < tonumber(oldest)) then
      oldest = head[2]
    end
  end
  out[#out + 1] = oldest
end
return out
