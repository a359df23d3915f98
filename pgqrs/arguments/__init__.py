"""What callers pass, checked before a database sees it: ids, names, durations, times."""
