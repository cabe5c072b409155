-- finish(outcomes…), seven values each: id, token, to, outcome, body (JSON of the result or the
-- error), delay in ms, files (JSON). Covers finish, retry and release; returns 'ok', 'lost' or
-- 'gone' for each.

-- An error half way would leave half of it done.
for at = 4, #ARGV, 7 do
  if not TRANSITIONS.running[ARGV[at + 2]] then
    error('no transition running -> ' .. ARGV[at + 2] .. ' (' .. ARGV[at] .. ')')
  end
end

local out = {}
for at = 4, #ARGV, 7 do
  local id, token, to, outcome, body, delay, files = unpack(ARGV, at, at + 6)
  out[#out + 1] = leave(id, token, to, outcome, body, delay, files)
end
leave_leases()
commit()
return out
