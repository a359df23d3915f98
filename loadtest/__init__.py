"""Measures pgqrs beside its peers: `python3 dev.py load`."""
