-- read_fields(number of fields, fields…, ids…): these fields of each job's record.

local width = tonumber(ARGV[4])
local out = {}
for at = 5 + width, #ARGV do
  out[#out + 1] = redis.call('HMGET', KEYS[1] .. 'job:' .. ARGV[at], unpack(ARGV, 5, 4 + width))
end
return out
