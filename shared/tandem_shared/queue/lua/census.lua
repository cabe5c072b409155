-- census('1' to mend, most, number of differences, differences…, places…): whether `counts` is what
-- stands in the places, at this moment. Those whose names nobody else knows are given. Returns a
-- text for each difference, '<queue> <state> <kept> <counted>'; where more than `most` jobs stand
-- in places of a kind, the queue is '*': they are only added up. Mends the differences that are
-- given, '<queue> <state> <counted - kept>', if they still are the same.

local mend, most, many = ARGV[4] == '1', tonumber(ARGV[5]), tonumber(ARGV[6])
local kept, queues, counted, sums = {}, {}, {}, {}
local flat = call('HGETALL', P .. 'counts')
for i = 1, #flat, 2 do
  local queue, state = string.match(flat[i], '^(%S*) (%S*)$')
  kept[flat[i]] = tonumber(flat[i + 1])
  sums[state] = (sums[state] or 0) + kept[flat[i]]
  queues[queue] = true
end

-- The places, by kind: what stands there is in one of these states.
local KINDS = {
  { 'leases', { 'running' } }, { 'later', { 'scheduled', 'retrying' } }, { 'queue', { 'queued' } },
  { 'park', { 'waiting' } },
}
local places, known = { leases = { 'leases' }, later = { 'later' }, queue = { 'suspects' }, park = {} }, {}
local function also(key)
  local kind = string.sub(key, 1, 2) == 'q:' and places.queue or places.park
  if not known[key] then
    known[key] = true
    kind[#kind + 1] = key
  end
end
for queue in pairs(queues) do
  for _, prio in ipairs(HIGH_FIRST) do
    also('q:' .. queue .. ':' .. prio)
  end
end
for at = 7 + many, #ARGV do
  also(ARGV[at])
end

local out, differ = {}, {}
local function compare(name, was, is)
  if was ~= is then
    out[#out + 1] = name .. ' ' .. int(was) .. ' ' .. int(is)
    differ[name .. ' ' .. int(is - was)] = { name, is - was }
  end
end

for _, kind in ipairs(KINDS) do
  local sum, total = 0, 0
  for _, key in ipairs(places[kind[1]]) do
    sum = sum + call('ZCARD', P .. key)
  end
  if sum <= most then
    local states, seen = {}, {}
    for _, state in ipairs(kind[2]) do
      states[state] = true
    end
    for _, key in ipairs(places[kind[1]]) do
      local ids = call('ZRANGE', P .. key, 0, -1)
      for i = 1, #ids do
        local r = call('HMGET', P .. 'job:' .. ids[i], 'queue', 'state')
        if r[1] and states[r[2]] then
          local name = r[1] .. ' ' .. r[2]
          seen[name] = (seen[name] or 0) + 1
        end
      end
    end
    for name in pairs(kept) do
      if states[string.match(name, '%S*$')] then
        seen[name] = seen[name] or 0
      end
    end
    for name, is in pairs(seen) do
      compare(name, kept[name] or 0, is)
    end
  else
    for _, state in ipairs(kind[2]) do
      total = total + (sums[state] or 0)
    end
    compare('* ' .. table.concat(kind[2], '+'), total, sum)
  end
end

if mend then
  for at = 7, 6 + many do
    local one = differ[ARGV[at]]
    if one and string.sub(one[1], 1, 2) ~= '* ' then
      call('HINCRBY', P .. 'counts', one[1], one[2])
    end
  end
end
return out
