-- read_fields(max bytes, number of fields, fields…, ids…): the bytes that were read, then these
-- fields of each job's record; of fewer jobs than asked for once `max bytes` are read.

local max_bytes, width = tonumber(ARGV[4]), tonumber(ARGV[5])
local out, size = { 0 }, 0
for at = 6 + width, #ARGV do
  local values = redis.call('HMGET', KEYS[1] .. 'job:' .. ARGV[at], unpack(ARGV, 6, 5 + width))
  out[#out + 1] = values
  for i = math.max(1, width - 7), width do -- what may be large is among the last ones
    size = size + #(values[i] or '')
  end
  if size > max_bytes then
    break
  end
end
out[1] = size
return out
