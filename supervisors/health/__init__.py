"""How the supervisor is, for those around it: HTTP (/healthz, /readyz, /metrics) and systemd."""
