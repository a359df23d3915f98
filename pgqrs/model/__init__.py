"""Data without behaviour: what the database holds, as records, states and writes. Imports nothing of ours."""
