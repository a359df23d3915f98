"""The supervisor's process: a selector, the threads that talk to the database, the workers'
pipes.
"""
