"""Reports the state of the supervisor by HTTP, for a load balancer or an orchestrator.

One thread answers all clients. Each connection is limited in time and size, and their number is
fixed, whatever clients send. A connection serves one request.
"""

import json
import selectors
import socket
import threading
from collections.abc import Callable
from contextlib import suppress

import msgspec
from msgspec import Struct

from pgqrs.errors import ConfigError
from supervisors.health.health import Health

# A loop that has not reported for this long is stuck.
STALE_S = 5.0
# For one more connection, the oldest is closed.
CONNECTIONS_MAX = 64
# Limits a connection from its beginning until its answer is read.
CONNECTION_S = 5.0
# The time for a client to read its answer.
LINGER_S = 1.0
REQUEST_BYTES_MAX = 8192
# The delay before the next attempt to accept a connection.
WITHOUT_DESCRIPTORS_S = 0.2

_REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}


class _Connection(Struct, eq=False):
    sock: socket.socket
    until: float
    request: bytearray = msgspec.field(default_factory=bytearray)
    # The unsent rest of the answer, or None before there is an answer.
    answer: bytes | None = None


class Http:
    """Answers GET /healthz with 200 while the loop turns, and GET /readyz with 200 while the
    supervisor also claims messages. Otherwise answers 503 with the reason.
    """

    def __init__(self, host: str, port: int, clock: Callable[[], float]) -> None:
        """Starts to listen. Raises ConfigError if the address is not available."""
        self._clock = clock
        self.health = Health(clock(), False, "it is starting", {})
        try:
            family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            self._listening = socket.create_server(address[:2], family=family, backlog=CONNECTIONS_MAX)
        except OSError as e:
            raise ConfigError(
                f"cannot listen on {_joined(host, port)}: {e.strerror}; name another address for --http"
            ) from e
        self._listening.setblocking(False)
        self.address = f"http://{_joined(host, self._listening.getsockname()[1])}"
        # When to accept again, after descriptors have run out.
        self._accept_at: float | None = None
        # The oldest first.
        self._connections: dict[socket.socket, _Connection] = {}
        self._wake, self._wake_end = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listening, selectors.EVENT_READ)
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="pgqrs-http", daemon=True)
        self._thread.start()

    def tell(self, health: Health) -> None:
        self.health = health

    def stopping(self) -> None:
        self.health = Health(self._clock(), False, "it is stopping", self.health.counts)

    def close(self) -> None:
        self._wake_end.close()
        self._thread.join(CONNECTION_S)

    def alive(self) -> str | None:
        silent_s = self._clock() - self.health.at
        return None if silent_s < STALE_S else f"its loop was last heard of {silent_s:.0f} s ago"

    def ready(self) -> str | None:
        return self.alive() or (None if self.health.ready else self.health.why_not)

    # Inside the thread

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select(self._timeout()):
                if key.fileobj is self._wake:
                    self._end()
                    return
                if key.fileobj is self._listening:
                    self._accept()
                elif connection := self._connections.get(key.fileobj):  # type: ignore[call-overload]
                    self._serve(connection)
            now = self._clock()
            for connection in [c for c in self._connections.values() if now >= c.until]:
                self._drop(connection)
            if self._accept_at is not None and now >= self._accept_at:
                self._accept_at = None
                self._selector.register(self._listening, selectors.EVENT_READ)

    def _timeout(self) -> float | None:
        times = [c.until for c in self._connections.values()]
        if self._accept_at is not None:
            times.append(self._accept_at)
        return max(0.0, min(times) - self._clock()) if times else None

    def _accept(self) -> None:
        try:
            sock, _ = self._listening.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError:  # no descriptor is left: clients wait in the backlog
            self._selector.unregister(self._listening)
            self._accept_at = self._clock() + WITHOUT_DESCRIPTORS_S
            return
        sock.setblocking(False)
        if len(self._connections) >= CONNECTIONS_MAX:
            self._drop(next(iter(self._connections.values())))
        self._connections[sock] = _Connection(sock, self._clock() + CONNECTION_S)
        self._selector.register(sock, selectors.EVENT_READ)

    def _serve(self, connection: _Connection) -> None:
        """Reads from or writes to a connection that is ready, without blocking."""
        try:
            if connection.answer is None:
                self._hear(connection)
            elif connection.answer:
                self._send(connection)
            elif not connection.sock.recv(4096):  # it has read its answer; ignore further input
                self._drop(connection)
        except BlockingIOError:
            pass
        except OSError:
            self._drop(connection)

    def _hear(self, connection: _Connection) -> None:
        data = connection.sock.recv(4096)
        if not data:
            self._drop(connection)
            return
        connection.request += data
        if len(connection.request) > REQUEST_BYTES_MAX:
            connection.answer = _answer(431, {"ok": False, "reason": "the request is too long"})
        elif b"\r\n\r\n" in connection.request or b"\n\n" in connection.request:
            connection.answer = self._answer(bytes(connection.request))
        else:
            return
        self._selector.modify(connection.sock, selectors.EVENT_WRITE)
        self._send(connection)

    def _send(self, connection: _Connection) -> None:
        assert connection.answer
        connection.answer = connection.answer[connection.sock.send(connection.answer) :]
        if not connection.answer:
            # Closing now could discard the answer if the client is still sending.
            connection.sock.shutdown(socket.SHUT_WR)
            connection.until = min(connection.until, self._clock() + LINGER_S)
            self._selector.modify(connection.sock, selectors.EVENT_READ)

    def _answer(self, request: bytes) -> bytes:
        line = request.split(b"\n", 1)[0].decode("latin-1").split()
        if len(line) != 3 or not line[2].startswith("HTTP/"):
            return _answer(400, {"ok": False, "reason": "this is no HTTP request"})
        method, target, _ = line
        if method not in ("GET", "HEAD"):
            return _answer(405, {"ok": False, "reason": "GET and HEAD are answered"}, "Allow: GET, HEAD\r\n")
        known = {"/healthz": self.alive, "/readyz": self.ready}
        if (asked := known.get(target.partition("?")[0])) is None:
            told: dict[str, object] = {"ok": False, "reason": f"there is {' and '.join(known)}"}
            status = 404
        else:
            why_not = asked()
            told = {"ok": why_not is None, "reason": why_not}
            status = 200 if why_not is None else 503
        return _answer(status, {**told, **self.health.counts}, without_body=method == "HEAD")

    def _drop(self, connection: _Connection) -> None:
        del self._connections[connection.sock]
        self._selector.unregister(connection.sock)
        connection.sock.close()

    def _end(self) -> None:
        for connection in list(self._connections.values()):
            self._drop(connection)
        self._selector.close()
        for sock in (self._listening, self._wake):
            with suppress(OSError):
                sock.close()


def _answer(
    status: int, told: dict[str, object], more_headers: str = "", without_body: bool = False
) -> bytes:
    body = json.dumps(told).encode() + b"\n"
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\n"
        "Content-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n"
        f"{more_headers}Connection: close\r\n"
        "\r\n"
    )
    return head.encode() + (b"" if without_body else body)


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
