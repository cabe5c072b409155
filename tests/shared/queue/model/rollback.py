"""A shard's keys as they were, so that a Redis that lost its last seconds can be played."""

from collections.abc import Sequence
from typing import Any

Copy = Sequence[Any]  # key, TTL in ms or 0, and what DUMP returns, of each key in turn

# All keys except the clock that a test turns.
COPY = """
local out = {}
for _, key in ipairs(redis.call('KEYS', KEYS[1] .. '*')) do
  local body = redis.call('DUMP', key)
  if body and key ~= KEYS[1] .. 'now' then
    local ttl = math.max(0, redis.call('PTTL', key))
    local n = #out
    out[n + 1], out[n + 2], out[n + 3] = key, ttl, body
  end
end
return out
"""
ROLL_BACK = """
for _, key in ipairs(redis.call('KEYS', KEYS[1] .. '*')) do
  if key ~= KEYS[1] .. 'now' then
    redis.call('DEL', key)
  end
end
for at = 1, #ARGV, 3 do
  redis.call('RESTORE', ARGV[at], ARGV[at + 1], ARGV[at + 2])
end
"""


async def copy_keys(redis: Any, prefix: str) -> Copy:
    """All keys under the prefix now."""
    copy: Copy = await redis.eval(COPY, 1, prefix)
    return copy


async def roll_back(redis: Any, prefix: str, copy: Copy) -> None:
    """Redis has the keys of the copy again, and no others."""
    await redis.eval(ROLL_BACK, 1, prefix, *copy)
