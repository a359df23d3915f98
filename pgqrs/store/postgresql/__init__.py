"""PostgreSQL: connections, prepared statements, what poolers and jsonb do not keep."""
