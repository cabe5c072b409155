-- look(number of fields, fields…, ids…): those fields of the jobs' records as they are now, one
-- answer an id.

local width = tonumber(ARGV[4])
local out = {}
for at = 5 + width, #ARGV do
  out[#out + 1] = redis.call('HMGET', KEYS[1] .. 'job:' .. ARGV[at], unpack(ARGV, 5, 4 + width))
end
return out
