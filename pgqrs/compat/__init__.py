"""The spellings of pgqrs 0.15, and the import paths of modules that have moved."""
