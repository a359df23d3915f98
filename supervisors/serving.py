"""What the machine around a supervisor may want to know: systemd by its notification socket, a load balancer or an orchestrator
by HTTP. Both are fed by the loop itself: where that does not turn, nothing says that all is well."""

import json
import os
import socket
import threading
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol

from msgspec import Struct

from pgqrs.errors import ConfigError

STALE_S = 5.0  # a loop that was not heard of for so long is stuck


class Health(Struct, frozen=True):
    """How the supervisor is, and since when nothing newer was heard (monotonic seconds)."""

    at: float
    ready: bool
    why_not: str | None
    counts: Mapping[str, Any]


class Listener(Protocol):
    def tell(self, health: Health) -> None: ...

    def stopping(self) -> None: ...

    def close(self) -> None: ...


class Systemd:
    """sd_notify(3): READY once, STATUS when it changes, WATCHDOG at half the interval that systemd asks for."""

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        # Taken out of the environment: a worker's child that notified would speak for the supervisor.
        path = environ.pop("NOTIFY_SOCKET")
        watchdog_us = environ.pop("WATCHDOG_USEC", "")
        environ.pop("WATCHDOG_PID", None)
        self._address = "\0" + path[1:] if path.startswith("@") else path
        self._every_s = int(watchdog_us) / 2e6 if watchdog_us.isdigit() else None
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)
        self._fed_at = 0.0
        self._was_ready = False
        self._status = ""

    def tell(self, health: Health) -> None:
        lines = []
        if health.ready and not self._was_ready:
            self._was_ready = True
            lines.append("READY=1")
        status = health.why_not or ", ".join(f"{v} {k}" for k, v in health.counts.items())
        if status != self._status:
            self._status = status
            lines.append(f"STATUS={status}")
        if self._every_s is not None and health.at - self._fed_at >= self._every_s:
            self._fed_at = health.at
            lines.append("WATCHDOG=1")
        self._send(lines)

    def stopping(self) -> None:
        self._send(["STOPPING=1"])

    def close(self) -> None:
        self._socket.close()

    def _send(self, lines: list[str]) -> None:
        if lines:
            with suppress(OSError):  # nobody listens any more, or too slowly
                self._socket.sendto("\n".join(lines).encode(), self._address)


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


def listeners(
    http: tuple[str, int] | None, clock: Callable[[], float], environ: MutableMapping[str, str] = os.environ
) -> list[Listener]:
    found: list[Listener] = []
    if environ.get("NOTIFY_SOCKET"):
        found.append(Systemd(environ))
    if http is not None:
        found.append(Http(*http, clock))
    return found
