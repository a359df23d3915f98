"""Compatibility with pgqrs 0.15: its builders and functions, and import paths of moved modules."""
