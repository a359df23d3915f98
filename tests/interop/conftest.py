"""The published package pgqrs 0.15.3, in an environment of its own, as the other side of a conversation."""

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

VERSION = "0.15.3"
ENVIRONMENT = Path(__file__).resolve().parents[2] / ".venv" / f"pgqrs-{VERSION}"
INSTALL_S = 300
OURS = Path(sys.executable)


@pytest.fixture(scope="session")
def python_0_15() -> Path:
    return environment()


def environment() -> Path:
    """The Python of an environment that has pgqrs 0.15.3. Made once and kept; several pytest processes may ask at once."""
    stamp = ENVIRONMENT / "finished"
    python = ENVIRONMENT / "bin" / "python"
    ENVIRONMENT.parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{ENVIRONMENT}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (stamp.exists() and python.exists()):
            shutil.rmtree(ENVIRONMENT, ignore_errors=True)
            for command in (
                [sys.executable, "-m", "venv", str(ENVIRONMENT)],
                [str(python), "-m", "pip", "install", "--quiet", f"pgqrs=={VERSION}"],
            ):
                done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S)
                if done.returncode != 0:
                    pytest.fail(
                        f"tests/interop needs pgqrs {VERSION} from PyPI, and this failed:\n  {' '.join(command)}\n"
                        f"{done.stdout}{done.stderr}\nMake pip reach an index that has it, then run the tests again; "
                        f"an environment made by hand is used as well, once {stamp} exists.",
                        pytrace=False,
                    )
            stamp.touch()
    return python


class Program:
    """A program that only says `import pgqrs`, started with the Python of either package."""

    def __init__(self, python: Path, program: Path, dsn: str, *arguments: str) -> None:
        variables = {**os.environ, "PGQRS_DSN": dsn}
        if python != OURS:
            variables.pop("PYTHONPATH", None)  # it may lead to ours
        self.process = subprocess.Popen(
            [str(python), str(program), *arguments],
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def said(self, timeout: float = 60) -> str:
        """Its standard output, once it has ended well."""
        try:
            out, err = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            out, err = self.process.communicate()
            pytest.fail(f"{self.process.args} took over {timeout} s:\n{out}\n{err}")
        assert self.process.returncode == 0, (
            f"{self.process.args} ended with {self.process.returncode}:\n{out}\n{err}"
        )
        return out

    def __enter__(self) -> "Program":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


def said_by(python: Path, program: Path, dsn: str, *arguments: str, timeout: float = 60) -> str:
    with Program(python, program, dsn, *arguments) as running:
        return running.said(timeout)
