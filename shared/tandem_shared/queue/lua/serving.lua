-- serving(max bytes): what live workers can run, and what is paused, in four flat lists: digest,
-- queues and number of the workers that have both in common; digest, task and version; task and
-- published version; paused queue and stamp of the pause. A list that does not fit is nil.

local left = tonumber(ARGV[4])
local function fitting(list)
  for i = 1, #list do
    left = left - #list[i]
  end
  return left >= 0 and list or false
end

local digests, groups = live_workers()
local workers, tasks = {}, {}
for group, number in pairs(groups) do
  local digest, queues = string.match(group, '^(%S+) (.*)$')
  workers[#workers + 1], workers[#workers + 2], workers[#workers + 3] = digest, queues, int(number)
end
for digest in pairs(digests) do
  local versions = call('HGETALL', P .. 'tasks:' .. digest)
  for i = 1, #versions, 2 do
    tasks[#tasks + 1], tasks[#tasks + 2], tasks[#tasks + 3] = digest, versions[i], versions[i + 1]
  end
end
return {
  fitting(workers), fitting(tasks), fitting(call('HGETALL', P .. 'versions')),
  fitting(call('HGETALL', P .. 'paused')),
}
