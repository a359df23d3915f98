"""Databases for the tests, and a check that no test leaves a process behind.

A test that takes `dsn` runs once for each backend, with the ids sqlite, turso, s3 and postgres
(`-k sqlite`). The mark `backends` names fewer: a test that has it is about code that all databases
share. Tests in tests/store run on the newest PostgreSQL of this machine as well, as
postgres-newest, where that is not the default one.

The fast part runs each test on SQLite, and on the other backends what the mark `fast_on` names.
PGQRS_TEST_BACKENDS=sqlite,s3 names the backends instead: then both parts run on these.
"""

from __future__ import annotations

import itertools
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

import pgqrs
from tests.pooler import pgbouncer_version
from tests.postgres_server import (
    Postgres,
    PostgresServer,
    newest_beside_the_default,
    quick_root,
    server_for_tests,
)
from tests.s3_server import S3Server

BACKENDS = ("sqlite", "turso", "s3", "postgres", "postgres-newest")
BACKENDS_VARIABLE = "PGQRS_TEST_BACKENDS"
FAST_BACKENDS = {"sqlite"}
STORE_TESTS = Path(__file__).parent / "store"

# In the environment of every process that descends from this session, however it was orphaned.
SESSION_VARIABLE = "PGQRS_TEST_SESSION"
PROCESSES_END_S = 10.0  # for those that are on their way out when the last test ends
database_numbers = itertools.count(1)


def pytest_configure() -> None:
    """`tmp_path` lies in memory too: each commit of SQLite waits for the disk."""
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", quick_root())


def pytest_report_header() -> str:
    version = pgbouncer_version()
    return "connection poolers: the suite's own, and " + (
        f"PgBouncer {version}" if version else "no PgBouncer, which is not installed here"
    )


# Databases


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "dsn" in metafunc.fixturenames:
        backends = backends_for(metafunc.definition.path)
        if (mark := metafunc.definition.get_closest_marker("backends")) is not None:
            backends = [name for name in backends if name in known(mark)]
        metafunc.parametrize("dsn", backends, indirect=True, ids=backends)


def backends_for(test_file: Path) -> list[str]:
    chosen = [name.strip() for name in os.environ.get(BACKENDS_VARIABLE, ",".join(BACKENDS)).split(",")]
    unknown = set(chosen) - set(BACKENDS)
    if unknown:
        raise pytest.UsageError(
            f"{BACKENDS_VARIABLE} knows {', '.join(BACKENDS)}, not {', '.join(sorted(unknown))}"
        )
    # Where the server is given, its version is as well.
    newest_too = (
        STORE_TESTS in test_file.parents
        and not os.environ.get("PGQRS_TEST_DSN")
        and newest_beside_the_default() is not None
    )
    return [name for name in BACKENDS if name in chosen and (name != "postgres-newest" or newest_too)]


def known(mark: pytest.Mark) -> set[str]:
    """The backends that a mark names."""
    if not mark.args or not set(mark.args) <= set(BACKENDS):
        raise pytest.UsageError(f"the mark {mark.name} names some of {', '.join(BACKENDS)}, not {mark.args}")
    return set(mark.args)


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    backends_were_named = BACKENDS_VARIABLE in os.environ
    for item in items:
        backend = item.callspec.params.get("dsn", "") if hasattr(item, "callspec") else ""
        if backend and not backends_were_named and backend not in fast_backends(item):
            item.add_marker(pytest.mark.slow)
        if str(backend).startswith("postgres") or "postgres_server" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.postgres)


def fast_backends(item: pytest.Item) -> set[str]:
    mark = item.get_closest_marker("fast_on")
    return FAST_BACKENDS | known(mark) if mark else FAST_BACKENDS


@pytest.fixture
def dsn(request: pytest.FixtureRequest) -> str:
    """A fresh empty database, of each backend in turn."""
    return str(request.getfixturevalue(f"{request.param.replace('-', '_')}_dsn"))


@pytest.fixture
def sqlite_dsn(tmp_path: Path) -> str:
    return f"sqlite://{tmp_path / 'pgqrs.db'}"


@pytest.fixture
def turso_dsn(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return turso_dsn_on(tmp_path / "pgqrs.db", request)


def turso_dsn_on(path: Path, request: pytest.FixtureRequest) -> str:
    shared = request.node.get_closest_marker("processes")
    return f"turso://{path}" + ("?experimental=multiprocess_wal" if shared else "")


@pytest.fixture
def s3_dsn(s3_server: S3Server) -> str:
    return s3_server.new_dsn()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One for each pytest process, named by the AWS_ variables of its environment."""
    with S3Server.start() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment().items():
            patch.setenv(name, value)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("s3-cache")))
        yield server


@pytest.fixture(scope="session")
def installed_sqlite_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """To be copied: installing takes ten times as long."""
    path = tmp_path_factory.mktemp("installed") / "pgqrs.db"
    with pgqrs.connect(f"sqlite://{path}") as store:
        store.install()
    return path


@pytest.fixture
def postgres_dsn(postgres_server: Postgres) -> Iterator[str]:
    yield from fresh_database(postgres_server)


@pytest.fixture
def postgres_newest_dsn(postgres_newest_server: Postgres) -> Iterator[str]:
    yield from fresh_database(postgres_newest_server)


def fresh_database(server: Postgres) -> Iterator[str]:
    # The pid keeps apart the pytest processes that share a given server.
    name = f"pgqrs_test_{os.getpid()}_{next(database_numbers)}"
    yield server.create_database(name)
    server.drop_database(name)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """One for each pytest process. A test that stops or restarts its server starts a PostgresServer of its own."""
    with server_for_tests() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_newest_server() -> Iterator[Postgres]:
    with PostgresServer.start(newest_beside_the_default()) as server:
        yield server


# Processes left behind


@pytest.fixture(scope="session", autouse=True)
def no_process_left_behind() -> Iterator[None]:
    """Autouse at session scope: set up before every other fixture, and therefore torn down after all of them."""
    session = uuid.uuid4().hex
    os.environ[SESSION_VARIABLE] = session
    # A test may write two programs of one name and one size within a second. Python would take the
    # first one's bytecode for the second's.
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    yield
    deadline = time.monotonic() + PROCESSES_END_S
    while (left := processes_of(session)) and time.monotonic() < deadline:
        time.sleep(0.05)
    if left:
        listed = "\n".join(f"  {pid}: {command}" for pid, command in left.items())
        pytest.fail(f"These processes were started by tests and still run:\n{listed}", pytrace=False)


def processes_of(session: str) -> dict[int, str]:
    """Command lines of our live descendants, by pid: children and theirs, and whoever carries the session's mark.

    Both, for neither sees everything: an orphan has another parent, and some programs (PostgreSQL) write their title over
    the environment that /proc shows.
    """
    if not Path("/proc/self/stat").exists():
        return {}
    mark = f"{SESSION_VARIABLE}={session}".encode()
    parents, found = {}, set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            # After the command's name, which is in parentheses and may hold anything: the state, then the parent.
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            if state in "ZX":
                continue
            parents[int(entry.name)] = int(parent)
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                found.add(int(entry.name))
        except OSError:
            # It has just ended, or is somebody else's.
            continue
    ours = {os.getpid()} | found
    while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= more
    commands = {pid: command_of(pid) for pid in sorted(ours - {os.getpid()})}
    # multiprocess keeps its resource tracker until its owner ends, which is us.
    return {
        pid: command for pid, command in commands.items() if command and "resource_tracker" not in command
    }


def command_of(pid: int) -> str:
    """ "" if it has ended meanwhile."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""
