-- unlock(id, token, number, name): the acquisition no longer holds or waits. Returns 'ok', also to
-- a repeat, or 'lost': the attempt has ended and released everything.

local id, token, number, name = unpack(ARGV, 4, 7)
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
else
  left = left .. number .. ' \n' -- its `lock` call may still arrive
end
if left == '' then
  call('HDEL', job, 'lk')
else
  call('HSET', job, 'lk', left)
end
return 'ok'
