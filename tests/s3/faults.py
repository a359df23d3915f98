"""What stands between pgqrs and S3 in these tests: it counts, takes its time, and goes wrong where told."""

import contextlib
import http.client
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.s3_server import S3Server

CODES = {
    403: "AccessDenied",
    409: "ConditionalRequestConflict",
    412: "PreconditionFailed",
    500: "InternalError",
    503: "SlowDown",
}


class Fault:
    """Applied to one request, in the order given."""

    def __init__(self, kind: str, status: int = 0, seconds: float = 0.0, xml: str = "") -> None:
        self.kind = kind
        self.status = status
        self.seconds = seconds
        self.xml = xml


def answer(status: int, xml: str | None = None) -> Fault:
    """S3 never sees it."""
    code = f"<Error><Code>{CODES[status]}</Code><Message>injected</Message></Error>"
    return Fault("answer", status, xml=xml or code)


REFUSE = Fault("refuse")  # the connection is reset before S3 sees it
LOSE = Fault("lose")  # S3 carries it out, and the connection is reset instead of an answer
TEAR = Fault("tear")  # half of the body arrives at S3, then the connection to it ends
HOLD = Fault("hold")  # the connection is reset at once, and S3 gets it when `deliver` is called
TEAR_DOWN = Fault("tear down")  # half of the answer's body arrives here
PASS = Fault("pass")


def late(seconds: float) -> Fault:
    """Here it is as good as lost at once; S3 gets it so much later."""
    return Fault("late", seconds=seconds)


class Proxy:
    def __init__(self, server: S3Server) -> None:
        self._server = server
        self.latency_s = 0.0
        self.counts: Counter[str] = Counter()
        self.chance: Callable[[str], Fault] | None = None  # what befalls a request of this method else
        self.drops: set[str] = set()  # headers of requests that do not reach S3, in lower case
        self.etag: Callable[[str], str | None] = lambda etag: (
            etag
        )  # how an answer's ETag is passed on, None for not at all
        self.before_put: Callable[[], None] | None = None  # called before S3 gets a PUT
        self.after_put: Callable[[], None] | None = None  # called once S3 has taken a PUT, before the answer
        self._faults: dict[str, deque[Fault]] = {
            "GET": deque(),
            "PUT": deque(),
            "HEAD": deque(),
            "DELETE": deque(),
            "POST": deque(),
        }
        self._always: dict[str, Fault] = {}
        self._lock = threading.Lock()
        self.mute: threading.Event | None = None  # while it is there and not set, no request gets an answer
        self.waiting = 0  # requests that do not get one
        self.late: list[threading.Thread] = []
        self._held: list[tuple[BaseHTTPRequestHandler, bytes]] = []
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def handle_one(self) -> None:
                proxy._handle(self)

            do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = handle_one

            def log_message(self, *_: object) -> None:
                pass

            def handle(self) -> None:
                with contextlib.suppress(OSError):
                    super().handle()

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._http.server_address[1]}"

    @contextlib.contextmanager
    def running(self) -> Iterator["Proxy"]:
        thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield self
        finally:
            self._http.shutdown()
            thread.join()
            self._http.server_close()
            for one in self.late:
                one.join()

    def next(self, method: str, *faults: Fault) -> None:
        """What happens to the next requests of this method."""
        with self._lock:
            self._faults[method].extend(faults)

    def always(self, method: str, fault: Fault | None) -> None:
        with self._lock:
            self._always.pop(method, None)
            if fault is not None:
                self._always[method] = fault

    @property
    def puts(self) -> int:
        return self.counts["PUT"]

    def deliver(self) -> list[int]:
        """S3's answers to what was held up on its way."""
        answers = [self._forward(request, body)[0] for request, body in self._held]
        self._held.clear()
        return answers

    # A request

    def _handle(self, request: BaseHTTPRequestHandler) -> None:
        method = request.command
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        with self._lock:
            self.counts[method] += 1
            queued = self._faults[method]
            otherwise = self.chance(method) if self.chance else PASS
            fault = queued.popleft() if queued else self._always.get(method, otherwise)
        if (mute := self.mute) is not None:
            self.waiting += 1
            mute.wait()
            self.waiting -= 1
            reset(request)
            return
        if self.latency_s:
            time.sleep(self.latency_s)
        match fault.kind:
            case "answer":
                self._answer(request, fault.status, [("Content-Type", "application/xml")], fault.xml.encode())
            case "refuse":
                reset(request)
            case "lose":
                self._forward(request, body)
                reset(request)
            case "late":
                thread = threading.Timer(fault.seconds, self._forward, (request, body))
                thread.start()
                self.late.append(thread)
                reset(request)
            case "hold":
                self._held.append((request, body))
                reset(request)
            case "tear":
                self._tear(request, body)
                reset(request)
            case "tear down":
                status, headers, answer = self._forward(request, body)
                self._answer(request, status, headers, answer, answer[: len(answer) // 2])
                reset(request)
            case _:
                if method == "PUT" and self.before_put is not None:
                    self.before_put()
                status, headers, answer = self._forward(request, body)
                if method == "PUT" and status == 200 and self.after_put is not None:
                    self.after_put()
                self._answer(request, status, headers, answer)

    def _forward(
        self, request: BaseHTTPRequestHandler, body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        upstream = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=30)
        try:
            # The Host header goes along as it is: the signature covers it.
            upstream.putrequest(request.command, request.path, skip_host=True, skip_accept_encoding=True)
            for name, value in request.headers.items():
                if name.lower() not in self.drops:
                    upstream.putheader(name, value)
            upstream.endheaders(body)
            response = upstream.getresponse()
            return response.status, self._passed_on(response.getheaders()), response.read()
        finally:
            upstream.close()

    def _passed_on(self, headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
        seen = [(name, self.etag(value) if name.lower() == "etag" else value) for name, value in headers]
        return [(name, value) for name, value in seen if value is not None]

    def _tear(self, request: BaseHTTPRequestHandler, body: bytes) -> None:
        with socket.create_connection(("127.0.0.1", self._server.port)) as upstream:
            head = f"{request.command} {request.path} HTTP/1.1\r\n"
            head += "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
            upstream.sendall(head.encode() + b"\r\n" + body[: len(body) // 2])

    def _answer(
        self,
        request: BaseHTTPRequestHandler,
        status: int,
        headers: list[tuple[str, str]],
        body: bytes,
        sent: bytes | None = None,
    ) -> None:
        request.send_response_only(status)
        length = {n.lower(): v for n, v in headers}.get("content-length", str(len(body)))
        for name, value in headers:
            if name.lower() not in ("transfer-encoding", "connection", "content-length", "date", "server"):
                request.send_header(name, value)
        request.send_header("Content-Length", length if request.command == "HEAD" else str(len(body)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body if sent is None else sent)
        request.wfile.flush()


def reset(request: BaseHTTPRequestHandler) -> None:
    """The connection ends without a word (RST)."""
    import struct

    request.close_connection = True
    with contextlib.suppress(OSError):
        request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.connection.close()
