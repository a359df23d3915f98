"""What a supervisor prints, whoever reads it or does not."""

import os
import pty
import re
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

import pgqrs
from tests.crashes import printing_flow
from tests.crashes.conftest import Proves
from tests.crashes.supervised import Supervised, eventually, supervise

pytestmark = pytest.mark.slow

TARGET = printing_flow.__file__
KINDS = (
    "print", "original", "buffer", "descriptor", "child", "C", "thread", "logger", "INFO other: other logger", "end",
)  # fmt: skip
STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d "


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_each_line_is_printed_once_and_of_its_run(sqlite_dsn: str, tmp_path: Path, method: str) -> None:
    with pgqrs.connect(sqlite_dsn) as store:
        store.install()
        runs = [store.trigger(printing_flow.saying) for _ in range(40)]
    options = ("--workers", "2", "--burst", "--start-method", method)
    with Supervised(sqlite_dsn, tmp_path / "log", *options, target=TARGET) as supervisor:
        assert supervisor.wait(60) == 0, supervisor.said()
    lines = re.findall(rf"^{STAMP}run (\d+) \| (.*)$", supervisor.said(), re.MULTILINE)
    assert Counter(lines) == Counter((str(run.id), f"{kind} of {run.id}") for run in runs for kind in KINDS)


def test_every_line_has_its_time(sqlite_dsn: str, tmp_path: Path) -> None:
    with pgqrs.connect(sqlite_dsn) as store:
        store.install()
        store.trigger(printing_flow.dumping)
    with Supervised(sqlite_dsn, tmp_path / "log", "--burst", target=TARGET) as supervisor:
        assert supervisor.wait(60) == 0, supervisor.said()
    lines = supervisor.said().splitlines()
    assert len(lines) > 5
    assert [line for line in lines if not re.match(STAMP, line)] == []
    assert "in dump" in supervisor.said()


@pytest.mark.parametrize("where", ["pipe", "terminal"])
def test_nobody_reads_and_the_work_goes_on(
    sqlite_dsn: str, tmp_path: Path, where: str, proves: Proves
) -> None:
    """As with Ctrl-S, or a log driver that hangs. What there is no room for is dropped, and told when somebody reads."""
    ours, theirs = os.pipe() if where == "pipe" else pty.openpty()
    with pgqrs.connect(sqlite_dsn) as store:
        store.install()
        runs = [store.trigger(printing_flow.talkative, 20_000) for _ in range(6)]
        process = subprocess.Popen(
            supervise(sqlite_dsn, "--workers", "2", target=TARGET),
            stdout=theirs,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
        )
        os.close(theirs)
        try:
            for run in runs:
                assert run.result(60) == 20_000
            process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            assert process.wait(20) == 0
            took_s = time.monotonic() - began
        finally:
            process.kill()
            process.wait()
            os.close(ours)
    proves(
        "nobody reads the supervisor's output, as with Ctrl-S or a log driver that hangs",
        "the work continues, and SIGTERM ends the supervisor; lines beyond 8 MiB are dropped, and their number is reported",
        seconds=took_s,
        within=10.0,
    )


def test_a_step_whose_name_is_markup_is_shown_in_the_panel(sqlite_dsn: str, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    with pgqrs.connect(sqlite_dsn) as store:
        store.install()
        run = store.trigger(printing_flow.ticking, str(tmp_path / "e"), 1.5)
        process = subprocess.Popen(
            supervise(sqlite_dsn, "--burst", target=TARGET),
            stdout=theirs,
            stderr=subprocess.STDOUT,
            env=os.environ | {"TERM": "xterm", "COLUMNS": "150"},
        )
        os.close(theirs)
        shown = b""
        try:
            while more := os.read(ours, 65536):
                shown += more
        except OSError:  # the terminal's other end is closed
            pass
        os.close(ours)
        assert process.wait(20) == 0, shown[-3000:]
        assert run.result(0) == str(tmp_path / "e")
    text = re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", shown).decode()
    assert "ticking · [/files] [red]x[/]" in text
    assert "[green]" not in text


@pytest.mark.parametrize("fail", [False, True])
def test_failed_runs_are_the_exit_code_where_that_is_asked_for(
    sqlite_dsn: str, tmp_path: Path, fail: bool
) -> None:
    with pgqrs.connect(sqlite_dsn) as store:
        store.install()
        store.trigger(printing_flow.failing)
    options = ("--burst", *(["--fail"] if fail else []))
    with Supervised(sqlite_dsn, tmp_path / "log", *options, target=TARGET) as supervisor:
        assert supervisor.wait(30) == int(fail), supervisor.said()
    assert ("1 failed, and --fail was given" in supervisor.said()) is fail


# Ctrl-Z


class Stopped:
    """A supervisor in a process group of its own, as a shell starts it."""

    def __init__(self, dsn: str, log: Path, *options: str) -> None:
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                supervise(dsn, "--workers", "1", *options, target=TARGET),
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                process_group=0,
            )
        self.log = log

    def suspend(self) -> None:
        self.process.send_signal(signal.SIGTSTP)
        _, status = os.waitpid(self.process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)

    def said(self) -> str:
        return self.log.read_text()


def grows(evidence: Path) -> bool:
    before = evidence.stat().st_size
    time.sleep(0.3)
    return evidence.stat().st_size > before


def test_ctrl_z_stops_the_workers_too_and_fg_has_them_go_on(sqlite_dsn: str, tmp_path: Path) -> None:
    evidence = tmp_path / "e"
    with pgqrs.connect(sqlite_dsn) as store:
        store.install()
        run = store.trigger(printing_flow.ticking, str(evidence), 1.0)
        supervisor = Stopped(sqlite_dsn, tmp_path / "log")
        try:
            eventually(lambda: evidence.exists() and evidence.stat().st_size, 20, supervisor.said)
            supervisor.suspend()
            assert not grows(evidence)
            supervisor.process.send_signal(signal.SIGCONT)
            assert run.result(20) == str(evidence)
            assert len(evidence.read_text()) == 100, "it went on where it was"
            supervisor.process.send_signal(signal.SIGTERM)
            assert supervisor.process.wait(20) == 0
        finally:
            supervisor.process.kill()
            supervisor.process.wait()
    assert "stopped by Ctrl-Z" in supervisor.said()
    assert re.search(r"goes on after \d", supervisor.said())


def test_who_goes_on_after_its_lease_starts_afresh(sqlite_dsn: str, tmp_path: Path) -> None:
    evidence = tmp_path / "e"
    with pgqrs.connect(sqlite_dsn) as store:
        store.install()
        run = store.trigger(printing_flow.ticking, str(evidence), 1.0)
        supervisor = Stopped(sqlite_dsn, tmp_path / "log", "--lease", "2s")
        try:
            eventually(lambda: evidence.exists() and evidence.stat().st_size, 20, supervisor.said)
            supervisor.suspend()
            ticks = evidence.stat().st_size
            with Supervised(sqlite_dsn, tmp_path / "other", target=TARGET):
                assert run.result(30) == str(evidence)
            assert len(evidence.read_text()) == ticks + 100, "the one that stood still wrote nothing more"
            supervisor.process.send_signal(signal.SIGCONT)
            again = store.trigger(printing_flow.ticking, str(tmp_path / "again"), 0.1)
            assert again.result(30)
            assert len(evidence.read_text()) == ticks + 100
            supervisor.process.send_signal(signal.SIGTERM)
            assert supervisor.process.wait(20) == 0
        finally:
            supervisor.process.kill()
            supervisor.process.wait()
    assert "the lease ran out" in supervisor.said()
