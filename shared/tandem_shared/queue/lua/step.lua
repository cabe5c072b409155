-- step(most, room, then id, token, name, body each): keeps results (JSON) of steps of running jobs,
-- fenced. One that is kept already stays as it is. Returns a word and a body each: 'ok' and what is
-- kept where that is something else, 'lost', or 'full' when the job would keep more than `most`
-- results or `room` bytes.

local most, room = tonumber(ARGV[4]), tonumber(ARGV[5])
local out = {}
for at = 6, #ARGV, 4 do
  local id, token, name, body = unpack(ARGV, at, at + 3)
  local job, steps = P .. 'job:' .. id, P .. 'steps:' .. id
  local r = call('HMGET', job, 'state', 'token', 'sb')
  local size = tonumber(r[3] or 0) + #name + #body
  local word, kept = 'ok', ''
  if r[1] ~= 'running' or r[2] ~= token then
    word = 'lost'
  elseif call('HEXISTS', steps, name) == 1 then
    kept = call('HGET', steps, name)
    if kept == body then
      kept = ''
    end
  elseif size > room or call('HLEN', steps) >= most then
    word = 'full'
  else
    call('HSET', steps, name, body)
    call('HSET', job, 'sb', int(size))
  end
  out[#out + 1] = word
  out[#out + 1] = kept
end
return out
