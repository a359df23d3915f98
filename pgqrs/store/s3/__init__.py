"""A SQLite database that lives in an object of S3: the local copy, the requests, the conflicts of writers."""
