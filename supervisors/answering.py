"""How the supervisor is, by HTTP: for a load balancer or an orchestrator."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from pgqrs.errors import ConfigError
from supervisors.serving import Health

STALE_S = 5.0  # a loop that was not heard of for so long is stuck


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # who asked has gone


class Http:
    """GET /healthz: 200 while the loop turns. GET /readyz: 200 while messages are being claimed too. Else 503, with the reason."""

    def __init__(self, host: str, port: int, clock: Callable[[], float]) -> None:
        """Raises ConfigError where the address cannot be had."""
        self._clock = clock
        self.health = Health(clock(), False, "it is starting", {})
        try:
            self._server = _Server((host, port), self._handler())
        except OSError as e:
            raise ConfigError(
                f"cannot listen on {host}:{port}: {e.strerror}; name another address for --http"
            ) from e
        self.address = f"http://{host}:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, name="pgqrs-http", daemon=True).start()

    def tell(self, health: Health) -> None:
        self.health = health

    def stopping(self) -> None:
        self.health = Health(self._clock(), False, "it is stopping", self.health.counts)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        http = self

        class Handler(BaseHTTPRequestHandler):
            timeout = 5.0

            def do_GET(self) -> None:
                known = {"/healthz": http.alive, "/readyz": http.ready}
                answer = known.get(self.path.partition("?")[0])
                why_not = answer() if answer else f"there is {' and '.join(known)}"
                status = 404 if answer is None else 200 if why_not is None else 503
                told = {"ok": why_not is None, "reason": why_not, **http.health.counts}
                body = json.dumps(told).encode() + b"\n"
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler

    def alive(self) -> str | None:
        silent_s = self._clock() - self.health.at
        return None if silent_s < STALE_S else f"its loop was last heard of {silent_s:.0f} s ago"

    def ready(self) -> str | None:
        return self.alive() or (None if self.health.ready else self.health.why_not)
