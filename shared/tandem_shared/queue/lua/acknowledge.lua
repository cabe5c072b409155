-- acknowledge(number of entries, entries…, then id and stamp of final jobs…): the ledger has
-- written these entries of the stream, and these jobs as they ended. Lets their records expire, and
-- trims the entries that no consumer holds any more.

local stream, entries = P .. 'events', tonumber(ARGV[4])
for at = 5 + entries, #ARGV, 2 do
  local id = ARGV[at]
  local job = P .. 'job:' .. id
  local a = call('HMGET', job, 'state', 'v', 'idem', 'o', 'sb')
  if a[2] == ARGV[at + 1] and FINAL[a[1]] and call('PTTL', job) == -1 then
    set_ttls(id, { idem = a[3] or nil, o = a[4] or nil, sb = a[5] or nil })
  end
end
if entries > 0 then
  call('XACK', stream, 'ledger', unpack(ARGV, 5, 4 + entries))
  local pending = call('XPENDING', stream, 'ledger')
  if pending[1] > 0 then
    call('XTRIM', stream, 'MINID', pending[2])
  else
    local groups = call('XINFO', 'GROUPS', stream)
    for i = 1, #groups do
      local group = {}
      for at = 1, #groups[i], 2 do
        group[groups[i][at]] = groups[i][at + 1]
      end
      if group.name == 'ledger' then
        local ms, number = string.match(group['last-delivered-id'], '^(%d+)-(%d+)$')
        call('XTRIM', stream, 'MINID', ms .. '-' .. int(number + 1))
      end
    end
  end
  note_read()
end
return 1
