-- serving(): how many live workers serve each queue and have each task. Returns the number of
-- queues, then a name and a number for each queue and for each task.

local digests, queues = live_workers()
local tasks, out = {}, { 0 }
for digest, workers in pairs(digests) do
  local names = call('HKEYS', P .. 'tasks:' .. digest)
  for i = 1, #names do
    tasks[names[i]] = (tasks[names[i]] or 0) + workers
  end
end
for queue, workers in pairs(queues) do
  out[1] = out[1] + 1
  out[#out + 1] = queue
  out[#out + 1] = workers
end
for task, workers in pairs(tasks) do
  out[#out + 1] = task
  out[#out + 1] = workers
end
return out
