"""Turso: the database of that name in a file, and the lock by which processes share it."""
