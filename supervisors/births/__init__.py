"""How worker processes are created: the nursery, which imports the user's module and forks, and
spawning.
"""
