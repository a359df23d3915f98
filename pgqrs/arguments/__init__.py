"""Checks and conversions of arguments: ids, names, durations, times."""
