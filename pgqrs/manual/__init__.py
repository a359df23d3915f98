"""Queues and runs driven by the program itself, without a supervisor: producers, consumers, runs,
tables.
"""
