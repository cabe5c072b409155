-- census(fix ('1'), max jobs, number of mismatches, mismatches…, places…): compares `counts` with
-- the jobs in all places, at this moment. `places` names those that `counts` does not imply.
--
-- Returns '<queue> <state>' and what was seen for each mismatch. Where places of one kind have more
-- than `max jobs` jobs, they are only added up, and the queue is '*'. With `fix`, corrects those
-- given mismatches, '<queue> <state> <seen>', that are still the same.

local fix, max_jobs, given = ARGV[4] == '1', tonumber(ARGV[5]), tonumber(ARGV[6])
local STATES = {
  leases = 'running', q = 'queued', suspects = 'queued', later = 'scheduled', park = 'waiting',
}

local flat, places = call('HGETALL', P .. 'counts'), { leases = true }
for i = 1, #flat, 2 do
  local queue = string.match(flat[i], '^%S*')
  places['suspects:' .. queue] = true
  for _, prio in ipairs(flat[i + 1] ~= '0' and HIGH_FIRST or {}) do
    places['q:' .. queue .. ':' .. prio], places['later:' .. queue .. ':' .. prio] = true, true
  end
end
for at = 7 + given, #ARGV do
  places[ARGV[at]] = true
end

local jobs = {} -- by the state of a kind of place
for key in pairs(places) do
  local state = STATES[string.match(key, '^%w+')]
  jobs[state] = (jobs[state] or 0) + call('ZCARD', P .. key)
end
jobs.retrying = jobs.scheduled

local kept, counted = {}, {}
local function add(to, queue, state, number)
  if jobs[state] and jobs[state] > max_jobs then
    queue, state = '*', state == 'retrying' and 'scheduled' or state
  end
  local name = queue .. ' ' .. state
  kept[name], counted[name] = kept[name] or 0, counted[name] or 0
  to[name] = to[name] + number
end
for i = 1, #flat, 2 do
  local queue, state = string.match(flat[i], '^(%S*) (%S*)$')
  add(kept, queue, state, tonumber(flat[i + 1]))
end
for key in pairs(places) do
  local state = STATES[string.match(key, '^%w+')]
  if jobs[state] > max_jobs then
    add(counted, '*', state, call('ZCARD', P .. key))
  else
    for _, id in ipairs(call('ZRANGE', P .. key, 0, -1)) do
      local r = call('HMGET', P .. 'job:' .. id, 'queue', 'state')
      if r[1] and (r[2] == state or r[2] == 'retrying' and state == 'scheduled') then
        add(counted, r[1], r[2], 1)
      end
    end
  end
end

local out, corrections = {}, {}
for name, is in pairs(counted) do
  if kept[name] ~= is then
    local seen = string.format('off by %+.0f', kept[name] - is)
    out[#out + 1] = name
    out[#out + 1] = seen
    corrections[name .. ' ' .. seen] = { name, is - kept[name] }
  end
end
for at = 7, fix and 6 + given or 0 do
  local correction = corrections[ARGV[at]]
  if correction and string.sub(correction[1], 1, 2) ~= '* ' then
    call('HINCRBY', P .. 'counts', unpack(correction))
  end
end
return out
