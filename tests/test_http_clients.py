"""What a supervisor's HTTP endpoint makes of clients that mean it ill, or never end."""

import http.client
import os
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from supervisors.health import http as answering
from supervisors.health.health import Health
from supervisors.health.http import CONNECTIONS_MAX, REQUEST_BYTES_MAX, Http


@pytest.fixture
def served() -> Iterator[Http]:
    http = Http("127.0.0.1", 0, time.monotonic)
    http.tell(Health(time.monotonic() + 1000, True, None, {"finished": 3}))
    yield http
    http.close()
    assert not http._thread.is_alive()


def connected(http: Http) -> socket.socket:
    host, _, port = http.address.removeprefix("http://").rpartition(":")
    return socket.create_connection((host, int(port)), timeout=10)


def answered(http: Http, request: bytes) -> bytes:
    with connected(http) as client:
        client.sendall(request)
        return everything(client)


def everything(client: socket.socket) -> bytes:
    found = b""
    with client:
        try:
            while more := client.recv(65536):
                found += more
        except ConnectionResetError:
            pass
    return found


def is_well(http: Http) -> bool:
    with urllib.request.urlopen(http.address + "/healthz", timeout=5) as answer:
        return bool(answer.status == 200)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.slow
def test_many_connections_cost_a_fixed_number_of_descriptors_and_no_thread(served: Http) -> None:
    threads, before = threading.active_count(), descriptors()
    silent = [connected(served) for _ in range(4 * CONNECTIONS_MAX)]
    try:
        assert is_well(served)
        assert threading.active_count() == threads
        assert descriptors() - before - len(silent) <= CONNECTIONS_MAX
    finally:
        for client in silent:
            client.close()


def test_a_slow_drip_ends_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "CONNECTION_S", 0.3)
    http = Http("127.0.0.1", 0, time.monotonic)
    http.tell(Health(time.monotonic(), True, None, {}))
    try:
        with connected(http) as client:
            began = time.monotonic()
            with pytest.raises(OSError):  # noqa: PT012
                client.sendall(b"GET /healthz HTTP/1.1\r\n")
                while time.monotonic() - began < 10:
                    client.sendall(b"X: y\r\n")
                    threading.Event().wait(0.02)
            assert time.monotonic() - began < 5
        assert is_well(http)
    finally:
        http.close()


def test_a_client_that_does_not_read_keeps_nobody_waiting(served: Http) -> None:
    with connected(served) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\n\r\n")
        assert is_well(served)


def test_a_request_that_does_not_end_is_refused(served: Http) -> None:
    told = answered(served, b"GET /healthz HTTP/1.1\r\nX: " + b"y" * REQUEST_BYTES_MAX + b"\r\n\r\n")
    assert told == b"" or told.startswith(b"HTTP/1.1 431 ")
    assert is_well(served)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /healthz HTTP/1.0\n\n", 200),
        (b"GET /healthz?x=1 HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        (b"HEAD /readyz HTTP/1.1\r\n\r\n", 200),
        (b"POST /healthz HTTP/1.1\r\n\r\n", 405),
        (b"GET / HTTP/1.1\r\n\r\n", 404),
        (b"GET http://x/healthz HTTP/1.1\r\n\r\n", 404),
        (b"\r\n\r\n", 400),
        (b"GET\r\n\r\n", 400),
        (b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03\n\n", 400),
    ],
)
def test_each_kind_of_request_has_its_answer(served: Http, request_: bytes, status: int) -> None:
    told = answered(served, request_)
    assert told.startswith(b"HTTP/1.1 %d " % status)
    head, _, body = told.partition(b"\r\n\r\n")
    assert bool(body) is not request_.startswith(b"HEAD")
    assert b"Connection: close" in head


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.one_of(st.binary(max_size=300), st.binary(max_size=60).map(lambda b: b"GET " + b + b"\r\n\r\n"))
)
def test_any_bytes_leave_it_well(served: Http, data: bytes) -> None:
    with connected(served) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        everything(client)
    assert is_well(served)


def test_without_descriptors_it_goes_on_when_there_are_some(served: Http) -> None:
    class Full:
        """The listening socket, when the process has no descriptor left."""

        def __init__(self) -> None:
            self.tries = 0

        def accept(self) -> None:
            self.tries += 1
            served._listening = listening
            raise OSError(24, "Too many open files")

        def fileno(self) -> int:
            return listening.fileno()

    listening = served._listening
    full = Full()
    served._selector.unregister(listening)
    served._listening = full  # type: ignore[assignment]
    served._selector.register(full, 1)
    assert is_well(served)
    assert full.tries == 1


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_an_address_of_ipv6() -> None:
    http = Http("::1", 0, time.monotonic)
    http.tell(Health(time.monotonic(), True, None, {}))
    try:
        assert http.address.startswith("http://[::1]:")
        assert is_well(http)
    finally:
        http.close()


def test_two_requests_one_after_another_need_two_connections(served: Http) -> None:
    client = http.client.HTTPConnection(served.address.removeprefix("http://"), timeout=5)
    for _ in range(3):  # it connects again by itself
        client.request("GET", "/healthz")
        assert client.getresponse().read().startswith(b'{"ok": true')
    client.close()
