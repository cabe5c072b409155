-- finish(outcomes…): ends attempts (finish, retry or release), eight values each: id, token, to,
-- outcome, body (JSON of the result or the failure), delay in ms, files (JSON), number of the last
-- report. Returns 'ok', 'lost', 'behind' or 'gone' for each.

-- Check all first: an error half way would leave the earlier outcomes without `commit`.
for at = 4, #ARGV, 8 do
  if not TRANSITIONS.running[ARGV[at + 2]] then
    error('no transition running -> ' .. ARGV[at + 2] .. ' (' .. ARGV[at] .. ')')
  end
end

local out = {}
for at = 4, #ARGV, 8 do
  out[#out + 1] = leave(unpack(ARGV, at, at + 7))
end
drop_leases()
commit()
return out
