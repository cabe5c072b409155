-- finish(outcomes…), seven values each: id, token, to, outcome, body (JSON of the result or the error), delay in ms,
-- files (JSON). Covers finish, retry and release; returns 'ok', 'lost' or 'gone' for each.

local out = {}
for at = 4, #ARGV, 7 do
  out[#out + 1] = leave(ARGV[at], ARGV[at + 1], ARGV[at + 2], {
    outcome = ARGV[at + 3],
    body = ARGV[at + 4],
    delay = tonumber(ARGV[at + 5]),
    files = ARGV[at + 6],
  })
end
leave_leases()
commit()
return out
