#!/usr/bin/env python3
"""Set up and run pgqrs from a checkout: `python3 dev.py demo` is all that a fresh machine needs.

This script needs only the standard library, and a Python that has ensurepip, pip or a `uv` beside
it. Everything is installed in .venv next to this file; the system's packages are never touched. A
second call finds its stamp in .venv and starts at once. PGQRS_DEV_VENV names another folder than
.venv, for a second Python beside the first.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

OLDEST_PYTHON = (3, 11)
# Tried in this order when the Python that runs this script is too old.
NEWER_PYTHONS = ("python3.13", "python3.12", "python3.11", "python3.14")

# The newest first. `dev.py test --newest-python` runs the suite on the newest of them too.
SUPPORTED_PYTHONS = ("3.13", "3.12", "3.11")

VENV_VARIABLE = "PGQRS_DEV_VENV"
PROJECT = Path(__file__).resolve().parent
VENV = PROJECT / (os.environ.get(VENV_VARIABLE) or ".venv")
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "pgqrs-dev.json"
SITE = PROJECT / "site"
PROCESSES = "3"
LOCK = VENV.with_name(f"{VENV.name}.lock")

# The programs of the test suite for `dev.py run NAME`.
MODULES = {
    "simulate": "tests.simulation",
    "chaos": "tests.crashes.chaos",
    "guarantees": "tests.crashes.guarantees",
    "stale-writer": "tests.crashes.stale_writer",
    "stopping": "tests.stopping_page",
    "states": "tests.states_page",
}


class CannotSetUp(Exception):
    """What is missing and what to do, in words for the person at the keyboard."""


def main(argv: Sequence[str]) -> int:
    arguments, rest = parse(argv)
    try:
        status: int = arguments.do(arguments, rest)
        return status
    except CannotSetUp as error:
        print(f"dev.py: {error}", file=sys.stderr)
        return 1


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Returns the command with its own options, and the words for the program that the command
    runs, in the order given.
    """
    parser = argparse.ArgumentParser(
        prog="dev.py",
        description="Set up and run pgqrs from a checkout. Everything is made on first use, in .venv.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    setup = commands.add_parser("setup", help="make .venv and install pgqrs there, and run nothing")
    setup.add_argument(
        "extras",
        nargs="*",
        metavar="EXTRA",
        help="extras of pyproject.toml: test, lint, docs, pydantic, yaml, turso, s3",
    )
    setup.set_defaults(do=set_up_only)

    # Commands that pass all options on pass --help on too, so they have no options of their own.
    demo = commands.add_parser(
        "demo", help="pgqrs demo; options go to it", add_help=False, allow_abbrev=False
    )
    demo.set_defaults(do=run_demo)

    test = commands.add_parser(
        "test",
        help="the tests; options go to pytest",
        usage="dev.py test [--fast] [--newest-python] [-n PROCESSES] [OPTIONS OF PYTEST ...]",
        allow_abbrev=False,
    )
    test.add_argument("--fast", action="store_true", help="leave out the tests marked slow")
    test.add_argument(
        "--newest-python",
        action="store_true",
        help="run the tests on the newest supported Python of this machine, in a venv of its own beside "
        ".venv; run nothing where that is the Python that runs dev.py",
    )
    test.add_argument(
        "-n",
        metavar="PROCESSES",
        help="pytest processes (default 3, which suits two cores because many tests wait; tests/core alone "
        "runs in one; with more, tests that measure time may fail; 0 to use --pdb)",
    )
    test.set_defaults(do=run_tests)

    lint = commands.add_parser("lint", help="ruff check, ruff format --check, mypy")
    lint.set_defaults(do=run_lint)

    docs = commands.add_parser("docs", help="the documentation, built in site/; a broken link fails")
    docs.add_argument(
        "--serve",
        action="store_true",
        help="serve the documentation on this machine, and rebuild it after a change",
    )
    docs.set_defaults(do=build_docs)

    load = commands.add_parser(
        "load", help="the load tests; options go to python -m loadtest", add_help=False, allow_abbrev=False
    )
    load.set_defaults(do=run_load)

    run = commands.add_parser(
        "run",
        help=f"run NAME ARGS: {', '.join(MODULES)}, a program "
        "of .venv/bin (python, ruff, pgqrs ...), or a script",
        usage="dev.py run NAME [ARGS ...]",
        add_help=False,
        allow_abbrev=False,
    )
    run.add_argument("name", metavar="NAME")
    run.set_defaults(do=run_program)

    arguments, rest = parser.parse_known_args(argv)
    if rest and arguments.do in (set_up_only, run_lint, build_docs):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return arguments, rest


# The commands


def set_up_only(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    set_up(arguments.extras)
    print(f"Ready: {PYTHON}")
    return 0


def run_demo(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    set_up()
    become(VENV / "bin" / "pgqrs", "demo", *rest)


def run_tests(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    if arguments.newest_python:
        return run_tests_on_the_newest_python(arguments, rest)
    set_up(["test"])
    os.chdir(PROJECT)
    # pytest keeps what it makes of each test file only where Python may write bytecode. Making it
    # again takes each of its processes some seconds.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    processes = arguments.n or processes_for(rest)
    return become(PYTHON, "-m", "pytest", *pytest_arguments(arguments.fast, processes, rest))


def run_tests_on_the_newest_python(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    version, python = newest_python()
    if python == sys.executable:
        print(
            f"The newest supported Python here is {version}, which runs dev.py: nothing more to run",
            flush=True,
        )
        return 0
    minor = ".".join(version.split(".")[:2])
    print(f"The newest supported Python here is {version}: {python}", flush=True)
    os.environ[VENV_VARIABLE] = f".venv-{minor}"
    ours = [*(["--fast"] if arguments.fast else []), *(["-n", arguments.n] if arguments.n else [])]
    return become(python, Path(__file__).resolve(), "test", *ours, *rest)


def newest_python() -> tuple[str, str]:
    """Returns the version and the path of the newest supported Python of this machine: the one that
    runs this script, one on PATH, or one of pyenv's.
    """
    ours = ".".join(map(str, sys.version_info[:3]))
    for minor in SUPPORTED_PYTHONS:
        if ours.startswith(f"{minor}."):
            return ours, sys.executable
        for python in pythons_of(minor):
            # A pyenv shim is on PATH for versions that are not enabled, and then fails.
            asked = run([python, "-c", "import sys; print('.'.join(map(str, sys.version_info[:3])))"])
            if asked.returncode == 0 and asked.stdout.startswith(f"{minor}."):
                return asked.stdout.strip(), python
    # This Python is newer than any supported one.
    return ours, sys.executable


def pythons_of(minor: str) -> list[str]:
    """Returns where a Python of this version may be, the likeliest place first."""
    on_path = shutil.which(f"python{minor}")
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    patches = [p for p in pyenv.glob(f"{minor}.*") if p.name.removeprefix(f"{minor}.").isdigit()]
    newest_first = sorted(patches, key=lambda p: int(p.name.rpartition(".")[2]), reverse=True)
    return [*([on_path] if on_path else []), *(str(p / "bin" / "python") for p in newest_first)]


def processes_for(rest: Sequence[str]) -> str:
    """Of tests/core alone, one: to start another takes longer than those tests."""
    named = [word for word in rest if word.startswith("tests")]
    return "0" if named and all(word.startswith("tests/core") for word in named) else PROCESSES


def pytest_arguments(fast: bool, processes: str, rest: Sequence[str]) -> list[str]:
    # Options of this script come first: if an option is given twice, such as -m, pytest uses the
    # last. An idle process takes tests from the others, because plain `load` gives the slow files,
    # which come first, to one process.
    return ["-n", processes, "--dist", "worksteal", *(["-m", "not slow"] if fast else []), *rest]


def run_lint(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    # mypy follows imports into what the other extras install.
    set_up(["lint", "test", "docs"])
    checks = ["ruff check", "ruff format --check", "mypy"]
    # All checks run even after one has failed: one run shows everything to fix.
    failed = [
        check for check in checks if subprocess.call([str(PYTHON), "-m", *check.split()], cwd=PROJECT) != 0
    ]
    if failed:
        print(f"dev.py: failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def build_docs(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    set_up(["docs"])
    os.chdir(PROJECT)
    # Material prints a long warning about a release of MkDocs that pyproject.toml excludes.
    os.environ["NO_MKDOCS_2_WARNING"] = "1"
    mkdocs = [str(PYTHON), "-m", "mkdocs"]
    if arguments.serve:
        become(*mkdocs, "serve", "--strict")
    status = subprocess.call([*mkdocs, "build", "--strict"])
    if status == 0:
        print(f"The documentation: {SITE / 'index.html'}")
    return status


def run_load(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    # The test extra installs the PostgreSQL for the scenarios.
    set_up(["test"])
    os.chdir(PROJECT)
    become(PYTHON, "-m", "loadtest", *rest)


def run_program(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    set_up(["test"])
    become(*program(arguments.name), *rest)


def program(name: str) -> list[str | Path]:
    if name in MODULES:
        return [PYTHON, "-m", MODULES[name]]
    installed = VENV / "bin" / name
    return [installed] if "/" not in name and installed.exists() else [PYTHON, name]


def become(*command: str | Path) -> NoReturn:
    """Replaces this process, so that signals and the exit status are the command's own."""
    words = [str(word) for word in command]
    sys.stdout.flush()
    try:
        os.execv(words[0], words)
    except OSError as error:
        raise CannotSetUp(f"cannot run {words[0]}: {error.strerror}") from error


# Setting up


@dataclasses.dataclass(frozen=True)
class Stamp:
    """What an environment is made of. A venv cannot be moved, so its path is part of the stamp."""

    python: str
    venv: str
    # The sha256 of pyproject.toml.
    pyproject: str
    extras: tuple[str, ...]


def stamp(pyproject: bytes, extras: Sequence[str], python: tuple[int, ...], venv: Path) -> Stamp:
    return Stamp(
        python=".".join(map(str, python)),
        venv=str(venv),
        pyproject=hashlib.sha256(pyproject).hexdigest(),
        extras=tuple(sorted(set(extras))),
    )


def missing(found: Stamp | None, want: Stamp) -> str:
    """Returns what a set-up still has to make: "nothing", "packages" (into the existing venv) or
    "everything".
    """
    if found is None or (found.python, found.venv) != (want.python, want.venv):
        return "everything"
    if found.pyproject != want.pyproject or not set(want.extras) <= set(found.extras):
        return "packages"
    return "nothing"


COMPILED = ("pgqrs", "supervisors", "loadtest", "tests")


def set_up(extras: Sequence[str] = ()) -> None:
    """Makes .venv hold pgqrs (editable) with these extras, compiled. Extras that it has already
    stay.
    """
    install_what_lacks(extras)
    # Compiled even if PYTHONDONTWRITEBYTECODE is set. Otherwise every process that a test starts
    # would compile everything again.
    subprocess.call([str(PYTHON), "-m", "compileall", "-q", *COMPILED], cwd=PROJECT)


def install_what_lacks(extras: Sequence[str]) -> None:
    want = stamp((PROJECT / "pyproject.toml").read_bytes(), extras, sys.version_info[:2], VENV)
    # Checked without the lock first: a caller that lacks nothing need not wait for another set-up.
    if missing(read_stamp(), want) == "nothing":
        return
    with only_one_set_up():
        found = read_stamp()
        lack = missing(found, want)
        if lack == "nothing":
            return
        if lack == "everything" or found is None:
            make_venv(want.python)
        else:
            # If this is interrupted, the old stamp stays, and the next call installs again.
            want = dataclasses.replace(want, extras=tuple(sorted({*want.extras, *found.extras})))
        install(want.extras)
        STAMP.write_text(json.dumps(dataclasses.asdict(want)))


def read_stamp() -> Stamp | None:
    """Returns None if there is no environment, if no set-up has finished it, or if its Python is
    gone.
    """
    if not os.access(PYTHON, os.X_OK):
        return None
    try:
        fields = json.loads(STAMP.read_text())
        return Stamp(**{**fields, "extras": tuple(fields["extras"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


@contextlib.contextmanager
def only_one_set_up() -> Iterator[None]:
    import fcntl

    # The lock ends with its holder. The file stays, because removing it would let two holders lock
    # two files of the same name.
    with LOCK.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Waiting for another dev.py, which is setting up ...", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def make_venv(python: str) -> None:
    if VENV.exists():
        print(f"Replacing {VENV}: it is unfinished, or was made for another Python or place", flush=True)
        shutil.rmtree(VENV)
    print(f"Making {VENV} with Python {python} ...", flush=True)
    ways = [[sys.executable, "-m", "venv", str(VENV)]]
    if uv():
        ways.insert(0, [uv(), "venv", "--quiet", "--python", sys.executable, str(VENV)])
    # Debian packages ensurepip separately from venv. The venv then uses the pip of the Python that
    # made it.
    if has_pip(sys.executable):
        ways.append([sys.executable, "-m", "venv", "--without-pip", str(VENV)])
    said = ""
    for way in ways:
        attempt = run(way)
        if attempt.returncode == 0:
            return
        said += attempt.stdout
        # `python -m venv` leaves a half-made folder behind when ensurepip is missing.
        shutil.rmtree(VENV, ignore_errors=True)
    raise CannotSetUp(
        f"{sys.executable} could not make a virtual environment:\n"
        f"{said.strip()}\n"
        "If it lacks ensurepip and pip: `apt install python3-venv` on Debian "
        "and Ubuntu, elsewhere install pip or uv. Then run this again."
    )


def install(extras: Sequence[str]) -> None:
    what = ".[" + ",".join(extras) + "]" if extras else "."
    print(f"Installing {what} ...", flush=True)
    ways = []
    if uv():
        ways.append([uv(), "pip", "install", "--quiet", "--python", str(PYTHON), "--editable", what])
    # uv ignores pip's configuration. If only pip is configured to reach the packages, pip must
    # follow.
    pip = ["install", "--quiet", "--editable", what]
    if has_pip(str(PYTHON)):
        ways.append([str(PYTHON), "-m", "pip", *pip])
    elif has_pip(sys.executable):
        ways.append([sys.executable, "-m", "pip", "--python", str(PYTHON), *pip])
    said = ""
    for way in ways:
        attempt = run(way)
        if attempt.returncode == 0:
            return
        said += attempt.stdout
    raise CannotSetUp(f"could not install {what}:\n{said.strip()}")


def uv() -> str:
    """Returns the path of this machine's `uv`, or "". This script never installs it."""
    return shutil.which("uv") or ""


def has_pip(python: str) -> bool:
    return run([python, "-m", "pip", "--version"]).returncode == 0


def run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    # A user's settings may install packages elsewhere than into the venv.
    elsewhere = ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in elsewhere}
    environment.update(PIP_USER="0", PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_NO_INPUT="1")
    return subprocess.run(
        command,
        cwd=PROJECT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


# The right Python


def use_a_python_new_enough(argv: Sequence[str]) -> None:
    """Returns if this Python is new enough. Otherwise replaces this process by one that is, or
    exits with one line.
    """
    if sys.version_info >= OLDEST_PYTHON:
        return
    for name in NEWER_PYTHONS:
        python = shutil.which(name)
        # Checked first, because a pyenv shim is on PATH for versions that are not enabled, and then
        # fails.
        if python and new_enough(python):
            os.execv(python, [python, str(Path(__file__).resolve()), *argv])
    sys.exit(too_old(sys.version_info, sys.executable))


def new_enough(python: str) -> bool:
    return run([python, "-c", f"import sys; sys.exit(sys.version_info < {OLDEST_PYTHON})"]).returncode == 0


def too_old(version: Sequence[object], executable: str) -> str:
    return (
        f"dev.py: needs Python {'.'.join(map(str, OLDEST_PYTHON))} or newer, but {executable} is "
        f"{'.'.join(map(str, version[:3]))} and PATH has none of {', '.join(sorted(NEWER_PYTHONS))}"
    )


if __name__ == "__main__":
    try:
        use_a_python_new_enough(sys.argv[1:])
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
