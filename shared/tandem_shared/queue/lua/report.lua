-- report(limit, archive from, max tail, then id, token, number, type, body, stamp each): writes
-- progress, log lines and output of running jobs. A body is JSON; bodies of log and output have one
-- value per line. `number` grows by one with each report of an attempt, so a repeat is not written
-- twice. `stamp` is that of an entry that Redis has lost and gets again, '0' for a new one.
--
-- Returns the entry's stamp; the same below zero, with `archive from` bytes or more in the job's
-- stream; 'ok', written before; 'wait', not written until the stream is archived, since it would
-- exceed `max tail` bytes; 'full', above `limit` bytes of the job in all; 'behind', since Redis
-- lacks the report before, as it does after it came back older; or 'lost'.

local limit, archive_from, max_tail = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local out, waits, published = {}, {}, {}
for at = 7, #ARGV, 6 do
  local id, token, number, type, body, stamp = unpack(ARGV, at, at + 5)
  local job = P .. 'job:' .. id
  local a = call('HMGET', job, 'state', 'token', 'v', 'o', 'ob', 'oq', 'attempt', 'ot')
  local r = { state = a[1], token = a[2], v = a[3], o = a[4], attempt = a[7] }
  local size, before = tonumber(a[5] or 0) + #body, tonumber(a[8] or 0)
  local tail, ahead = before + #body + ENTRY_BYTES, tonumber(number) - tonumber(a[6] or 0)
  if r.state ~= 'running' or r.token ~= token then
    out[#out + 1] = 'lost'
  elseif ahead <= 0 then
    out[#out + 1] = 'ok'
  elseif size > limit then
    out[#out + 1] = 'full'
  elseif waits[id] or (tail > max_tail and before > 0) then
    waits[id] = true -- later reports of the job wait as well, to keep their order
    out[#out + 1] = 'wait'
  elseif ahead > 1 then
    out[#out + 1] = 'behind'
  else
    -- Under its old stamp, so that a reader who has read the entry does not get it again.
    local v = tonumber(stamp) > last_stamp(r) and stamp or next_stamp(r)
    -- The stamp is the entry's id, so output, progress and states have one order. `p` is the stamp
    -- of the previous entry: a reader sees from it whether entries are missing between them.
    call('XADD', P .. 'out:' .. id, v .. '-0', 't', type, 'a', r.attempt, 'p', r.o or 0, 'd', body)
    if type == 'progress' then
      call('HSET', job, 'o', v, 'ob', size, 'oq', number, 'ot', tail, 'v', v, 'progress', body)
    else
      call('HSET', job, 'o', v, 'ob', size, 'oq', number, 'ot', tail)
    end
    if published[id] ~= type then
      published[id] = type
      call('PUBLISH', P .. 'news:' .. id, type)
    end
    out[#out + 1] = tail >= archive_from and -tonumber(v) or tonumber(v)
  end
end
return out
