"""The user's program: how a process of ours starts, and how it finds and imports the user's functions."""
