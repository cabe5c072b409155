-- adopt(arq id, then the 16 values of a job, each): jobs of plain arq clients become ours. One that is no longer in
-- arq's queue was adopted by another worker. An arq id is an idempotency key, so a job enqueued again under its id is
-- not run twice.

local out = {}
for at = 4, #ARGV, 1 + WIDTH do
  local foreign = ARGV[at]
  if call('ZREM', 'arq:queue', foreign) == 1 then
    call('DEL', 'arq:job:' .. foreign, 'arq:retry:' .. foreign)
    out[#out + 1] = enter(at + 1)[1]
  else
    out[#out + 1] = ''
  end
end
commit()
return out
