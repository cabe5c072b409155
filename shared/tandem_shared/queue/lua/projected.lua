-- projected(number of entries, entries…, then id and stamp of final jobs…): the ledger has what
-- these entries of the stream told, and these jobs as they ended. So their records may expire, and
-- what no consumer holds any more is cut off the stream.

local stream, many = P .. 'events', tonumber(ARGV[4])
for at = 5 + many, #ARGV, 2 do
  local id = ARGV[at]
  local job = P .. 'job:' .. id
  local a = call('HMGET', job, 'state', 'v', 'idem', 'o', 'sb')
  if a[2] == ARGV[at + 1] and FINAL[a[1]] and call('PTTL', job) == -1 then
    fade(id, { idem = a[3] or nil, o = a[4] or nil, sb = a[5] or nil })
  end
end
if many > 0 then
  call('XACK', stream, 'ledger', unpack(ARGV, 5, 4 + many))
  local held = call('XPENDING', stream, 'ledger')
  if held[1] > 0 then
    call('XTRIM', stream, 'MINID', held[2])
  else
    local groups = call('XINFO', 'GROUPS', stream)
    for i = 1, #groups do
      local facts = {}
      for at = 1, #groups[i], 2 do
        facts[groups[i][at]] = groups[i][at + 1]
      end
      if facts.name == 'ledger' then
        local ms, number = string.match(facts['last-delivered-id'], '^(%d+)-(%d+)$')
        call('XTRIM', stream, 'MINID', ms .. '-' .. int(number + 1))
      end
    end
  end
end
return 1
