"""Programs that run in the peers' own environments. See loadtest/others.py."""
