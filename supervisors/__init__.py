"""The supervisor: one process with the database, worker processes with the user's functions, pipes between them.

wire    what crosses a pipe
core    decides: events in, commands out; no I/O, no clock
launch  makes worker processes (the only place that forks) and sees them die
worker  the process that runs the user's functions
loop    does: pipes, signals, the database, the clock
"""
