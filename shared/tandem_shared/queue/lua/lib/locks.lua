-- Who holds a lock, and who waits for it in order. A holder is an acquisition, '<id> <token>
-- <number>', and it holds for no longer than its attempt runs: the job's own lease is the lock's.
-- What an attempt holds or waits for stands in `lk` of its record, '<number> <name>' a line;
-- '<number> ' alone is an acquisition that was given up before it came here.

-- Fences grow over all locks of the shard, and with the clock: also after Redis has lost what it
-- knew.
local function grant(tenant, name, holder)
  local fence = int(math.max(US, tonumber(call('HGET', P .. 'clock', 'fence') or 0) + 1))
  call('HSET', P .. 'clock', 'fence', fence)
  call('HSET', P .. 'lock:' .. tenant .. ':' .. name, 'holder', holder, 'fence', fence)
  return fence
end

local function holds_still(holder)
  local id, token = string.match(holder, '^(%S+) (%S+)')
  local r = call('HMGET', P .. 'job:' .. id, 'state', 'token')
  return r[1] == 'running' and r[2] == token
end

-- To whoever has waited longest, or to nobody.
local function hand_on(tenant, name)
  local waits = P .. 'waits:' .. tenant .. ':' .. name
  local first = call('ZPOPMIN', waits)
  while first[1] do
    if holds_still(first[1]) then
      grant(tenant, name, first[1])
      local id, number = string.match(first[1], '^(%S+) %S+ (%d+)$')
      call('PUBLISH', P .. 'news:' .. id .. ':' .. number, 'lock')
      return
    end
    first = call('ZPOPMIN', waits)
  end
  call('DEL', P .. 'lock:' .. tenant .. ':' .. name)
end

local function give_up(tenant, name, holder)
  if call('HGET', P .. 'lock:' .. tenant .. ':' .. name, 'holder') == holder then
    hand_on(tenant, name)
  else
    call('ZREM', P .. 'waits:' .. tenant .. ':' .. name, holder)
  end
end

-- The end of an attempt.
local function give_up_all(id, r)
  for number, name in string.gmatch(r.lk, '(%d+) ([^\n]*)\n') do
    if name ~= '' then
      give_up(r.tenant, name, id .. ' ' .. r.token .. ' ' .. number)
    end
  end
  call('HDEL', P .. 'job:' .. id, 'lk')
end
