"""The supervisor: one process with the database, worker processes with the user's functions, pipes between them.

wire    what crosses a pipe
core    decides: events in, commands out; no I/O, no clock
loop    does: pipes, signals, the database, the clock
launch  what makes worker processes: the nursery (the only place that forks), or spawning
worker  the process that runs the user's functions, from its birth on
"""
