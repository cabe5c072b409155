-- unlock(id, token, number, name): the acquisition holds or waits no more. 'ok', also to a repeat,
-- or 'lost': the attempt is over, and what it held was given up with it.

local id, token, number, name = unpack(ARGV, 4, 7)
local job = P .. 'job:' .. id
local r = call('HMGET', job, 'state', 'token', 'tenant', 'lk')
if r[1] ~= 'running' or r[2] ~= token then
  return 'lost'
end
local left, found = '', false
for n, of in string.gmatch(r[4] or '', '(%d+) ([^\n]*)\n') do
  if n == number then
    found = of ~= ''
  else
    left = left .. n .. ' ' .. of .. '\n'
  end
end
if found then
  give_up(r[3], name, id .. ' ' .. token .. ' ' .. number)
else
  left = left .. number .. ' \n' -- its `lock` may still be on its way
end
if left == '' then
  call('HDEL', job, 'lk')
else
  call('HSET', job, 'lk', left)
end
return 'ok'
