"""What comes from users, rows and workers is a part of a line, and never a line or an order of its own."""

import contextlib
import json
import os
import sys
import threading

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import pgqrs
from pgqrs.cli import outlet
from pgqrs.cli.commands import cli
from pgqrs.cli.options import fail
from pgqrs.cli.outlet import Outlet
from pgqrs.cli.output import clean
from pgqrs.cli.views import PanelView, PlainView
from pgqrs.model.printable import printable, printable_json, printable_lines
from supervisors.core.events import Note
from supervisors.loop.view import State, WorkerState

FORGED = "boring\r\nrun 42: finished\x1b[2J\x9b31m\u2028\u202eevil\x07\0"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, é, 日本, 👩\u200d🔬, a\u00a0b", "plain, é, 日本, 👩\u200d🔬, a\u00a0b"),
        ("a\tb", "a\tb"),
        ("a\nb\rc", "a\\nb\\rc"),
        ("\x1b[31m", "\\x1b[31m"),
        ("\x85\x9b\x7f\0", "\\x85\\x9b\\x7f\\x00"),
        ("\u2028\u202e\u2066\ufeff", "\\u2028\\u202e\\u2066\\ufeff"),
        ("\ud800", "\\ud800"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_each_character_is_itself_or_its_escape(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text(st.characters()))
def test_no_text_has_a_second_line_or_a_control(text: str) -> None:
    shown = printable(text)
    assert len(shown.splitlines()) <= 1
    assert not any((ord(c) < 32 and c != "\t") or 127 <= ord(c) < 160 for c in shown)


@given(st.recursive(st.text(st.characters(exclude_categories=["Cs"])), st.lists))
def test_json_means_the_same(value: object) -> None:
    shown = printable_json(msgspec.json.encode(value).decode())
    assert json.loads(shown) == value
    assert len(shown.splitlines()) == 1


def test_further_lines_are_behind_the_first() -> None:
    assert printable_lines("pgqrs: a\r\npgqrs: b\x1b", "  ") == "pgqrs: a\\r\n  pgqrs: b\\x1b"


def test_an_error_of_several_lines_forges_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        fail(FORGED, 1)
    told = capsys.readouterr().err.splitlines()
    assert [line.startswith("  ") for line in told] == [False, True]
    assert told[1].startswith("  run 42: finished\\x1b[2J\\x9b31m\\u2028")


def test_a_cell_is_one_line() -> None:
    assert clean("a\nb\tc\x1b") == "a b c\\x1b"


def test_a_view_prints_one_line_for_each_thing_that_happens(tmp_path) -> None:
    fd = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT)
    view = PlainView(Outlet(fd))
    view.line(1, FORGED)
    view.note(Note(FORGED, "error", 2))
    view.ended(0, FORGED, State((), 0, 0, 0, 0, 0, None, None))
    os.close(fd)
    told = (tmp_path / "out").read_bytes()
    assert told.count(b"\n") == 3
    assert b"\x1b" not in told


def test_a_panel_shows_names_as_they_are(tmp_path) -> None:
    fd = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT)
    view = PanelView(Outlet(fd))
    worker = WorkerState(1, 2, "busy", 1, 3, "flow[/]", "[/files] [red]x[/]\x1b[2J", 1.0)
    view.line(3, "[/nothing] [bold]x\x1b[2J")
    view.note(Note("[/nothing]\x1b[2J", "warning", 3))
    view._console.print(view._panel(State((worker,), 0, 1, 0, 1, 0, None, 5)))
    view.ended(0, "[/nothing]", State((worker,), 0, 1, 0, 1, 0, None, 5))
    os.close(fd)
    shown = (tmp_path / "out").read_text()
    assert "[/nothing] [bold]x\\x1b[2J" in shown
    assert "run 3: [/nothing]\\x1b[2J" in shown
    assert "flow[/] ·" in shown
    assert "[/files]" in shown
    assert "[red]x[/]\\x1b[2J" in shown
    assert "[green]" not in shown


# Nobody reads


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch):
    """An outlet whose reader stands still, and the reader's end."""
    monkeypatch.setattr(outlet, "WAITING_BYTES_MAX", 200_000)
    readable, writable = os.pipe()
    line = "x" * 99 + "\n"
    written = 0
    # Before anything is written to the outlet: what its thread still wrote would make room again.
    os.set_blocking(writable, False)
    with contextlib.suppress(BlockingIOError):
        while os.write(writable, line.encode()):
            written += 1
    os.set_blocking(writable, True)
    out = Outlet(writable)
    while not out._dropped:
        out.write(line)
        written += 1
        assert written < 100_000
    yield out, readable, written
    os.close(readable)


def test_what_finds_no_room_is_dropped_at_once_and_told_once_somebody_reads(full) -> None:
    out, readable, written = full
    for _ in range(10):
        out.write("more\n")
    data = bytearray()

    def read() -> None:
        while b"last\n" not in data:
            data.extend(os.read(readable, 65536))

    assert not out.settle(0.05)
    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    assert out.settle(10)
    out.write("last\n")
    reader.join(10)
    lines = data.decode().splitlines()
    kept = sum(line[0] == "x" for line in lines)
    assert lines[-2:] == [
        f"warning: {written - kept + 10} lines before this one found no reader and were dropped",
        "last",
    ]


def test_an_outlet_that_a_neighbour_has_made_non_blocking_loses_nothing() -> None:
    readable, writable = os.pipe()
    os.set_blocking(writable, False)
    out = Outlet(writable)
    for n in range(20_000):
        out.write(f"line {n}\n")
    data = b""
    while b"line 19999\n" not in data:
        data += os.read(readable, 65536)
    assert data.decode().split() == [w for n in range(20_000) for w in ("line", str(n))]
    os.close(readable)


# Words that help


@pytest.mark.parametrize(
    ("argument", "offered"),
    [
        ("/data/logs", """'"/data/logs"'"""),
        ("it's", """'"it'"'"'s"'"""),
        ("{path: 1}", None),
        ("[1", None),
    ],
)
def test_text_without_quotes_is_offered_with_them(tmp_path, argument: str, offered: str | None) -> None:
    dsn = f"sqlite:///{tmp_path}/a.db"
    with pgqrs.connect(dsn) as store:
        store.install()
    result = CliRunner().invoke(cli, ["trigger", "archive", argument, "--dsn", dsn])
    told = str(result.exception)
    assert "is no valid JSON" in told
    assert (f"; if this text is meant, write {offered}" in told) is (offered is not None)
    assert ("is meant" in told) is (offered is not None)


@pytest.mark.parametrize(
    ("address", "host"), [("[::1]:8080", "::1"), ("127.0.0.1:8080", "127.0.0.1"), (":8080", "127.0.0.1")]
)
def test_an_address_may_be_of_ipv6(address: str, host: str) -> None:
    from pgqrs.cli.options import Address

    assert Address().convert(address, None, None) == (host, 8080)


@pytest.mark.parametrize("address", ["::1:8080", "[::1]", "[::1:8080", "::1"])
def test_an_address_of_ipv6_needs_its_brackets(address: str) -> None:
    import click

    from pgqrs.cli.options import Address

    with pytest.raises(click.BadParameter, match="no address"):
        Address().convert(address, None, None)


def test_systemd_is_told_one_line(tmp_path) -> None:
    from supervisors.health.health import Health
    from supervisors.health.systemd import Systemd

    if sys.platform != "linux":
        return
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as theirs:
        theirs.bind(str(tmp_path / "notify"))
        systemd = Systemd({"NOTIFY_SOCKET": str(tmp_path / "notify")})
        systemd.tell(Health(1.0, False, "away\nREADY=1", {}))
        assert theirs.recv(1000) == b"STATUS=away\\nREADY=1"
        systemd.close()
