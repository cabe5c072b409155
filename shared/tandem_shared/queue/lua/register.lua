-- register(worker, catalogue, number of facts, facts (name, value)…, then six values per task:
-- name, version, entry, slots, every, burst): announces a worker and what it can run.
--
-- An entry replaces only those of the same or older versions, and brings the task's limits: `slots`
-- attempts at once, a start every `every` µs after a burst; 0 for no limit. A task with an empty
-- entry is run but not published.

local worker, catalogue, facts = ARGV[4], ARGV[5], tonumber(ARGV[6])
local me = P .. 'worker:' .. worker
call('HSET', me, 'tasks', catalogue, unpack(ARGV, 7, 6 + 2 * facts))
call('PEXPIRE', me, WORKER_TTL_MS)
call('ZADD', P .. 'workers', NOW_MS, worker)
local changed = false
for at = 7 + 2 * facts, #ARGV, 6 do
  local name, version, entry, slots, every, burst = unpack(ARGV, at, at + 5)
  call('HSET', P .. 'tasks:' .. catalogue, name, version)
  local newest = tonumber(call('HGET', P .. 'versions', name) or 0)
  if entry ~= '' and tonumber(version) >= newest
    and call('HGET', P .. 'catalogue', name) ~= entry then
    call('HSET', P .. 'catalogue', name, entry)
    call('HSET', P .. 'versions', name, version)
    changed = true
    local limit = P .. 'limit:' .. name
    if slots ~= '0' or every ~= '0' or call('EXISTS', limit) == 1 then
      call('HSET', limit, 'slots', slots, 'every', every, 'burst', burst)
      serve(name, 100) -- the limits may be higher now; `open_gates` serves further jobs
    end
  end
end
call('PEXPIRE', P .. 'tasks:' .. catalogue, TASKS_TTL_MS)
if changed then
  call('HSET', P .. 'clock', 'catalogue', NOW_US)
end
commit()
return 1
