"""The decisions of a supervisor. Pure: events go in, commands come out; no I/O, no clock, no
threads.
"""
