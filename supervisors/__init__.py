"""The supervisor: one process that uses the database, worker processes that execute the user's
functions, and pipes between them.

births    create worker processes: the nursery (the only place that forks), or spawning
core      makes all decisions: events in, commands out; no I/O, no clock
loop      executes the commands: pipes, signals, the database, the clock
worker    the process that executes the user's functions
wire      the messages on the pipe between a supervisor and a worker
health    the state of the supervisor for HTTP and systemd
machine   the identity of the process, CPU quotas, the out-of-memory killer

Terms:

turn      one transaction of the supervisor: the writes of its runs, and new claims
lane      a slot for one run in a worker; a worker with several lanes holds several runs
board     memory that a worker shares with the supervisor and that survives the worker's death
nursery   the process that imports the user's module once and forks the workers
"""
