"""Queues and runs that a program drives by hand, without a supervisor: producers, consumers, runs, tables."""
