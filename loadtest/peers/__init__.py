"""Programs that run in the peers' own environments: see loadtest/others.py."""
