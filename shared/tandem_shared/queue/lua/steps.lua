-- steps(id, token): results of a running job's steps: 'ok', then name and body of each; or 'lost'.

local id, token = ARGV[4], ARGV[5]
local r = call('HMGET', P .. 'job:' .. id, 'state', 'token')
if r[1] ~= 'running' or r[2] ~= token then
  return { 'lost' }
end
local kept = call('HGETALL', P .. 'steps:' .. id)
table.insert(kept, 1, 'ok')
return kept
