-- A first write that takes no memory. While its memory is full, Redis refuses a script whose first
-- write may take some, but none of the writes after it. Scripts that finish accepted jobs begin
-- with this one: they take little memory and free more in the end.
redis.call('DEL', KEYS[1] .. 'nothing')
