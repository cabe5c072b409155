-- finish_again('1' or '0', then outcomes…): as `finish`, after a fault. If Redis has forgotten the
-- attempt because it came back older, the attempt runs again and ends as it did. '1': these ends,
-- which are final, were accepted before. After 'behind', the attempt runs until its reports are
-- written again.

local accepted = ARGV[4] == '1'
local out = {}
for at = 5, #ARGV, 8 do
  local id, token, to = unpack(ARGV, at, at + 2)
  local a = call('HMGET', P .. 'job:' .. id, 'state', 'token', 'cancel')
  if accepted and a[1] == 'running' and a[2] == token and a[3] and to ~= 'cancelled' then
    call('HDEL', P .. 'job:' .. id, 'cancel') -- requested after the end
  end
  local word = leave(unpack(ARGV, at, at + 7))
  if word == 'lost' and resume(id, token, accepted) then
    word = leave(unpack(ARGV, at, at + 7))
  end
  out[#out + 1] = word
end
drop_leases()
commit()
return out
