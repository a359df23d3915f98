"""The user's program: starting pgqrs processes, and finding and importing the user's functions in them."""
