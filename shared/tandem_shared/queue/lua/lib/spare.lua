-- When its memory is full, Redis refuses a script's first write if that may take memory, and no
-- write that comes after one. What goes on with jobs that were accepted takes little and gives back
-- more in the end, so it goes on: it begins with a write that takes none.
redis.call('DEL', KEYS[1] .. 'nothing')
