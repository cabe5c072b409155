-- unlock(id, token, number, name, fence): the acquisition no longer holds, or waits (fence '0').
-- Returns 'ok', also to a repeat, or 'lost': the attempt has ended and released everything, or
-- Redis has come back older and does not know that it held the lock.

local id, token, number, name, fence = unpack(ARGV, 4, 8)
local job = P .. 'job:' .. id
local r = call('HMGET', job, 'state', 'token', 'tenant', 'lk')
if r[1] ~= 'running' or r[2] ~= token then
  return 'lost'
end
local left, found = '', false
for n, lock in string.gmatch(r[4] or '', '(%d+) ([^\n]*)\n') do
  if n == number then
    found = lock ~= ''
  else
    left = left .. n .. ' ' .. lock .. '\n'
  end
end
if found then
  release_lock(r[3], name, id .. ' ' .. token .. ' ' .. number)
elseif fence ~= '0' then
  return knows_fence(tonumber(fence)) and 'ok' or 'lost'
else
  left = left .. number .. ' \n' -- its `lock` call may still arrive
end
if left == '' then
  call('HDEL', job, 'lk')
else
  call('HSET', job, 'lk', left)
end
return 'ok'
