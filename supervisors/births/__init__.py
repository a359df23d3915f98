"""How worker processes come to be: the nursery that imports the user's module and forks, and spawning."""
