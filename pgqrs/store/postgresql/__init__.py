"""PostgreSQL: connections, prepared statements, and workarounds for poolers and jsonb."""
