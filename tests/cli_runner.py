"""Calls the command line: in this process, which is quick, or as a process of its own."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from pgqrs.cli import main

FLOWS = Path(__file__).parent / "cli_flows.py"
COMMAND = [sys.executable, "-m", "pgqrs"]


class Ended(msgspec.Struct):
    code: int
    out: str
    err: str

    @property
    def json(self) -> object:
        assert self.code == 0, self.err
        return msgspec.json.decode(self.out)

    @property
    def lines(self) -> list[str]:
        assert self.code == 0, self.err
        return self.out.splitlines()


class Pgqrs:
    """`pgqrs("runs", "--json")`, on the test's database unless the arguments name one."""

    def __init__(self, dsn: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self.dsn = dsn
        self._monkeypatch = monkeypatch
        self._capfd = capfd
        monkeypatch.setenv("PGQRS_DSN", dsn)

    def __call__(self, *args: object) -> Ended:
        self._capfd.readouterr()
        self._monkeypatch.setattr(sys, "argv", ["pgqrs", *map(str, args)])
        code = 0
        try:
            main()
        except SystemExit as e:
            code = e.code if isinstance(e.code, int) else int(e.code is not None)
        out, err = self._capfd.readouterr()
        return Ended(code, out, err)

    def process(self, *args: object, stdin: bytes = b"") -> Ended:
        ended = subprocess.run(
            [*COMMAND, *(a if isinstance(a, bytes) else str(a) for a in args)],
            input=stdin,
            capture_output=True,
            timeout=60,
        )
        return Ended(
            ended.returncode, ended.stdout.decode(errors="replace"), ended.stderr.decode(errors="replace")
        )

    def work_off(self, workers: int = 1) -> str:
        """Runs a supervisor until nothing is left to do."""
        ended = self.process("supervise", FLOWS, "--burst", "--workers", workers)
        assert ended.code == 0, ended.out + ended.err
        return ended.out

    @contextmanager
    def supervised(self) -> Iterator[subprocess.Popen[bytes]]:
        """A supervisor that is ready and goes on."""
        with subprocess.Popen(
            [*COMMAND, "supervise", str(FLOWS), "--workers", "1"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process:
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    if b" lease " in line:
                        break
                yield process
            finally:
                process.terminate()
                process.communicate(timeout=30)
