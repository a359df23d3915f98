"""Reports the state of the supervisor by HTTP (/healthz, /readyz) and to systemd."""
