-- While its memory is full, Redis refuses a script whose first write may take memory, but no write
-- that follows another one. Scripts that finish accepted jobs take little and free more in the end,
-- so they begin with a write that takes none.
redis.call('DEL', KEYS[1] .. 'nothing')
