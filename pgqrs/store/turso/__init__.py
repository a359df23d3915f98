"""Turso: a database in a file, and the lock with which processes share it."""
