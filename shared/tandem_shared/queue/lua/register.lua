-- register(worker, digest, number of facts, facts (name, value)…, then six values per task:
-- name, version, entry, slots, every, burst): announces a worker and what it can run.
--
-- An entry brings the task's limits: `slots` attempts at once, a start every `every` µs after a
-- burst; 0 for no limit. A task with an empty entry is run but not published.

local worker, digest, facts = ARGV[4], ARGV[5], tonumber(ARGV[6])
local me = P .. 'worker:' .. worker
local tasks, entries = P .. 'tasks:' .. digest, P .. 'entries:' .. digest
call('HSET', me, 'tasks', digest, unpack(ARGV, 7, 6 + 2 * facts))
call('PEXPIRE', me, WORKER_TTL_MS)
call('ZADD', P .. 'workers', NOW_MS, worker)
for at = 7 + 2 * facts, #ARGV, 6 do
  local name, version, entry, slots, every, burst = unpack(ARGV, at, at + 5)
  call('HSET', tasks, name, version)
  if entry ~= '' then
    call('HSET', entries, name, slots .. ' ' .. every .. ' ' .. burst .. ' ' .. entry)
  end
end
call('PEXPIRE', tasks, TASKS_TTL_MS)
call('PEXPIRE', entries, TASKS_TTL_MS)
publish_all(digest)
commit()
return 1
