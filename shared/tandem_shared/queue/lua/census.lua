-- census(fix ('1'), max jobs, number of mismatches, mismatches…, places…): compares `counts` with
-- the jobs in all places, at this moment. `places` names those that `counts` does not imply.
--
-- Returns '<queue> <state> <kept> <counted>' for each mismatch. Where places of one kind have more
-- than `max jobs` jobs, they are only added up, and the queue is '*'. With `fix`, corrects the
-- given mismatches, '<queue> <state> <counted - kept>', that are still the same.

local fix, max_jobs, given = ARGV[4] == '1', tonumber(ARGV[5]), tonumber(ARGV[6])
local kept, queues, kept_by_state = {}, {}, {}
local flat = call('HGETALL', P .. 'counts')
for i = 1, #flat, 2 do
  local queue, state = string.match(flat[i], '^(%S*) (%S*)$')
  kept[flat[i]] = tonumber(flat[i + 1])
  kept_by_state[state] = (kept_by_state[state] or 0) + kept[flat[i]]
  queues[queue] = true
end

-- Kinds of places, with the states that their jobs can have.
local KINDS = {
  { 'leases', { 'running' } }, { 'later', { 'scheduled', 'retrying' } },
  { 'queue', { 'queued' } }, { 'park', { 'waiting' } },
}
local places = { leases = { 'leases' }, later = {}, queue = {}, park = {} }
local known = {}
local function add_place(key)
  local first = string.match(key, '^%w+')
  local kind = first == 'later' and places.later or first == 'park' and places.park or places.queue
  if not known[key] then
    known[key] = true
    kind[#kind + 1] = key
  end
end
for queue in pairs(queues) do
  for _, prio in ipairs(HIGH_FIRST) do
    add_place('q:' .. queue .. ':' .. prio)
    add_place('later:' .. queue .. ':' .. prio)
  end
  add_place('suspects:' .. queue)
end
for at = 7 + given, #ARGV do
  add_place(ARGV[at])
end

local out, mismatches = {}, {}
local function compare(name, was, is)
  if was ~= is then
    out[#out + 1] = name .. ' ' .. int(was) .. ' ' .. int(is)
    mismatches[name .. ' ' .. int(is - was)] = { name, is - was }
  end
end

-- Compares the jobs of one kind by queue and state.
local function count_jobs(kind, states)
  local counted = {}
  for _, key in ipairs(places[kind]) do
    local ids = call('ZRANGE', P .. key, 0, -1)
    for i = 1, #ids do
      local r = call('HMGET', P .. 'job:' .. ids[i], 'queue', 'state')
      if r[1] and states[r[2]] then
        local name = r[1] .. ' ' .. r[2]
        counted[name] = (counted[name] or 0) + 1
      end
    end
  end
  for name in pairs(kept) do
    if states[string.match(name, '%S*$')] then
      counted[name] = counted[name] or 0
    end
  end
  for name, is in pairs(counted) do
    compare(name, kept[name] or 0, is)
  end
end

for _, kind in ipairs(KINDS) do
  local jobs, kept_jobs, states = 0, 0, {}
  for _, key in ipairs(places[kind[1]]) do
    jobs = jobs + call('ZCARD', P .. key)
  end
  for _, state in ipairs(kind[2]) do
    states[state] = true
    kept_jobs = kept_jobs + (kept_by_state[state] or 0)
  end
  if jobs <= max_jobs then
    count_jobs(kind[1], states)
  else
    compare('* ' .. table.concat(kind[2], '+'), kept_jobs, jobs)
  end
end

if fix then
  for at = 7, 6 + given do
    local mismatch = mismatches[ARGV[at]]
    if mismatch and string.sub(mismatch[1], 1, 2) ~= '* ' then
      if call('HINCRBY', P .. 'counts', mismatch[1], mismatch[2]) == 0 then
        call('HDEL', P .. 'counts', mismatch[1])
      end
    end
  end
end
return out
