"""The HTTP server of `--http`: /healthz, /readyz, /metrics."""
