-- register(worker, catalogue, number of facts, facts (name, value)…, then six values of each task:
-- name, version, entry, slots, every, burst): a worker says who it is and what it can run. An entry
-- of an older version never replaces a newer one, and a task's limits are those of its entry:
-- `slots` attempts at once, one every `every` µs after a burst; 0: none.

local worker, catalogue, facts = ARGV[4], ARGV[5], tonumber(ARGV[6])
local me = P .. 'worker:' .. worker
call('HSET', me, 'tasks', catalogue, unpack(ARGV, 7, 6 + 2 * facts))
call('PEXPIRE', me, ALIVE)
call('ZADD', P .. 'workers', MS, worker)
local changed = false
for at = 7 + 2 * facts, #ARGV, 6 do
  local name, version, entry = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  call('HSET', P .. 'tasks:' .. catalogue, name, version)
  local newest = tonumber(call('HGET', P .. 'versions', name) or 0)
  if entry ~= '' and tonumber(version) >= newest and call('HGET', P .. 'catalogue', name) ~= entry then
    call('HSET', P .. 'catalogue', name, entry)
    call('HSET', P .. 'versions', name, version)
    changed = true
    if ARGV[at + 3] ~= '0' or ARGV[at + 4] ~= '0' or call('EXISTS', P .. 'limit:' .. name) == 1 then
      call('HSET', P .. 'limit:' .. name, 'slots', ARGV[at + 3], 'every', ARGV[at + 4], 'burst', ARGV[at + 5])
      serve(name, 100) -- they may have been raised; the rest follows when the gates are next opened
    end
  end
end
call('PEXPIRE', P .. 'tasks:' .. catalogue, 86400000)
if changed then
  call('HSET', P .. 'clock', 'catalogue', US)
end
commit()
return 1
