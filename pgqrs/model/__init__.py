"""Plain data: records, states and writes of the database. This package imports no other part of pgqrs."""
