-- tick(): time passes. Run by each API once a second; every claim does the same first.

local settled = keep_up()
call('ZREMRANGEBYSCORE', P .. 'workers', '-inf', MS - ALIVE)
commit()
return settled
