"""A SQLite database in one S3 object: the local copy, the requests, and conflicts between writers."""
