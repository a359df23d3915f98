"""What a supervisor tells systemd and whoever asks by HTTP."""

import json
import socket
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from pgqrs.errors import ConfigError
from supervisors.health.health import Health
from supervisors.health.http import STALE_S, Http
from supervisors.health.listeners import listeners
from supervisors.health.systemd import Systemd


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def health(at: float, why_not: str | None = None, **counts: int) -> Health:
    return Health(at, why_not is None, why_not, counts or {"finished": 3})


def asked(address: str, path: str) -> tuple[int, dict[str, object]]:
    try:
        with urllib.request.urlopen(address + path, timeout=5) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as e:
        return e.code, json.load(e)


@pytest.fixture
def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def test_http_says_whether_the_loop_turns_and_whether_messages_are_claimed(free_port: int) -> None:
    clock = Clock()
    http = Http("127.0.0.1", free_port, clock)
    try:
        assert asked(http.address, "/healthz")[0] == 200
        assert asked(http.address, "/readyz") == (503, {"ok": False, "reason": "it is starting"})
        http.tell(health(100.0))
        assert asked(http.address, "/readyz") == (200, {"ok": True, "reason": None, "finished": 3})
        http.tell(health(100.0, "the database is away: refused"))
        assert asked(http.address, "/healthz")[0] == 200
        assert asked(http.address, "/readyz")[1]["reason"] == "the database is away: refused"
        clock.now += STALE_S + 1
        assert asked(http.address, "/healthz")[0] == 503
        assert "last heard of 6 s ago" in str(asked(http.address, "/readyz")[1]["reason"])
        assert asked(http.address, "/other")[0] == 404
        http.stopping()
        assert asked(http.address, "/readyz") == (
            503,
            {"ok": False, "reason": "it is stopping", "finished": 3},
        )
    finally:
        http.close()


def test_an_address_that_is_taken_is_said(free_port: int) -> None:
    with (
        socket.create_server(("127.0.0.1", free_port)),
        pytest.raises(ConfigError, match="name another address"),
    ):
        Http("127.0.0.1", free_port, Clock())


def test_systemd_hears_ready_once_status_when_it_changes_and_the_watchdog_in_time(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as theirs:
        theirs.bind(str(tmp_path / "notify"))
        theirs.settimeout(2)
        environ = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "4000000", "WATCHDOG_PID": "1"}
        [systemd] = listeners(None, Clock(), environ)
        assert environ == {}
        systemd.tell(health(100.0, "it is starting"))
        assert theirs.recv(1000) == b"STATUS=it is starting\nWATCHDOG=1"
        systemd.tell(health(101.0))
        assert theirs.recv(1000) == b"READY=1\nSTATUS=3 finished"
        systemd.tell(health(101.5))
        systemd.tell(health(102.0))
        assert theirs.recv(1000) == b"WATCHDOG=1"
        systemd.stopping()
        assert theirs.recv(1000) == b"STOPPING=1"
        systemd.close()


def test_an_abstract_socket_and_one_that_nobody_reads() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as theirs:
        theirs.bind("\0pgqrs-test-notify")
        theirs.settimeout(2)
        systemd = Systemd({"NOTIFY_SOCKET": "@pgqrs-test-notify"})
        systemd.tell(health(1.0))
        assert theirs.recv(1000).startswith(b"READY=1")
    systemd.tell(health(2.0, finished=4))
    systemd.close()


def test_nobody_is_told_where_nobody_asked() -> None:
    assert listeners(None, Clock(), {}) == []
