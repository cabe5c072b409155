-- step(max steps, max bytes, then id, token, name, body each): keeps results (JSON) of steps of
-- running jobs, unless one has been kept under the name. Returns a word and a body for each: 'ok'
-- and what is kept if it differs from the given body, 'lost', or 'full' above `max steps` results
-- or `max bytes` of the job.

local max_steps, max_bytes = tonumber(ARGV[4]), tonumber(ARGV[5])
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
  elseif size > max_bytes or call('HLEN', steps) >= max_steps then
    word = 'full'
  else
    call('HSET', steps, name, body)
    call('HSET', job, 'sb', int(size))
  end
  out[#out + 1] = word
  out[#out + 1] = kept
end
return out
