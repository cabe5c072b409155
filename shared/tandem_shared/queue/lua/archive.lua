-- archive(id, token, first, last, size, weight): the oldest entries of a running job's stream, with
-- stamps `first` to `last` and `weight` bytes in all, are now a segment of `size` bytes in the file
-- store. Adds the segment to the index and removes the entries. Returns the bytes left in the
-- stream, or -1 if another attempt has the job.

local id, token, first, last, size, weight = unpack(ARGV, 4, 9)
local job, stream, index = P .. 'job:' .. id, P .. 'out:' .. id, P .. 'cold:' .. id
local a = call('HMGET', job, 'state', 'token', 'ot')
if a[1] ~= 'running' or a[2] ~= token then
  return -1
end
local left = tonumber(a[3] or 0)
local head = call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
if head and head[1] == first .. '-0' then -- else this is a repeat
  call('XADD', index, last .. '-0', 'f', first, 's', size)
  call('XTRIM', stream, 'MINID', '=', int(tonumber(last) + 1) .. '-0')
  left = math.max(0, left - weight)
  call('HSET', job, 'ot', left)
end
return left
