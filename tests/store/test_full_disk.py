"""A disk that is full, and a file that cannot be written or is damaged: told as a database that is away, never as a value's fault,
and over once there is room."""

import subprocess
import sys
from pathlib import Path

import pytest

import pgqrs
from tests.crashes.supervised import Supervised, eventually

ROOT = Path(__file__).parents[2]
TARGET = str(ROOT / "tests" / "s3" / "drained.py")

pytestmark = pytest.mark.timeout(120)

PROGRAM = """
import asyncio, os, resource, signal, sys, pgqrs

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
dsn, path = sys.argv[1:]
store = pgqrs.connect(dsn).open()
ids = store.enqueue_many("tasks", range(3))
consumer = store.consumer("tasks")
consumer.dequeue()

def full():
    size = max(os.path.getsize(p) for p in (path, path + "-wal") if os.path.exists(p))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

def told(name, call):
    try:
        call()
        print(name, "ok")
    except pgqrs.PgqrsConnectionError as e:
        print(name, "away" if dsn in str(e) else e)
    except BaseException as e:
        print(name, type(e))

full()
calls = {
    "enqueue": lambda: store.enqueue("tasks", "x" * 100_000),
    "enqueue_many": lambda: store.enqueue_many("tasks", ["x" * 1000] * 200),
    "new queue": lambda: [store.queue(f"new {n}") for n in range(99)],
    "dequeue": lambda: [consumer.dequeue() for _ in range(99)] and store.enqueue("tasks", "x" * 100_000),
    "archive": lambda: consumer.archive(ids[0]) and store.enqueue("tasks", "x" * 100_000),
    "purge": lambda: store.get_queues().purge("tasks") and store.enqueue("tasks", "x" * 100_000),
}
for name, call in calls.items():
    told(name, call)
told("look", lambda: store.queues())
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
told("room", lambda: store.enqueue("tasks", "x" * 100_000))
"""


@pytest.fixture(params=["sqlite", "turso"])
def file_dsn(request, tmp_path):
    return f"{request.param}://{tmp_path}/jobs.db"


def test_every_call_says_that_the_database_is_away_and_goes_on_once_there_is_room(file_dsn, tmp_path):
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, file_dsn, str(tmp_path / "jobs.db")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    said = dict(line.rsplit(" ", 1) for line in ended.stdout.splitlines())
    assert said.pop("look") == "ok"
    assert said.pop("room") == "ok"
    assert set(said.values()) == {"away"}, ended.stdout
    assert len(said) == 6


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["sqlite", "turso", "s3"])
def test_a_supervisor_goes_on_once_there_is_room(backend, request, tmp_path, monkeypatch):
    file_dsn = request.getfixturevalue("s3_dsn") if backend == "s3" else f"{backend}://{tmp_path}/jobs.db"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    evidence = tmp_path / "evidence"
    monkeypatch.setenv("EVIDENCE", str(evidence))
    monkeypatch.setenv("TAKES_S", "0.02")
    with pgqrs.connect(file_dsn) as store:
        store.enqueue_many("jobs", range(60))
    with Supervised(file_dsn, tmp_path / "log", "--workers", "1", "--burst", target=TARGET) as supervisor:
        eventually(lambda: evidence.exists())
        limit(supervisor.pid, 4096)  # the log of the supervisor's own words is short
        eventually(lambda: "the database is away" in supervisor.said(), what=supervisor.said)
        limit(supervisor.pid, -1)
        assert supervisor.wait(60) == 0, supervisor.said()
        assert "the database is back" in supervisor.said()
    with pgqrs.connect(file_dsn) as store:
        [queue] = store.queues()
        assert (queue.archived, queue.dead) == (60, 0)


def limit(pid, size):
    import resource

    most = resource.RLIM_INFINITY
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (most if size < 0 else size, most))


def native_errors():
    import turso._turso as driver

    found = [value for value in vars(driver).values() if isinstance(value, type)]
    return sorted((c for c in found if issubclass(c, Exception)), key=lambda c: c.__name__)


@pytest.mark.parametrize("kind", native_errors(), ids=lambda c: c.__name__)
def test_no_error_of_turso_leaves_as_it_is(kind):
    from turso.lib import _map_turso_exception

    from pgqrs.store.turso.database import _translated

    def as_the_driver_does():
        try:
            raise kind("PermissionDenied: some words")
        except Exception as e:
            raise _map_turso_exception(e)  # noqa: B904

    with pytest.raises(pgqrs.PgqrsError), _translated("turso://a.db"):
        as_the_driver_does()


def test_nor_one_that_it_does_not_name(turso_dsn):
    from pgqrs.store.turso.database import _translated

    io_error = type("IoError", (Exception,), {"__module__": "turso"})
    with pytest.raises(pgqrs.PgqrsConnectionError, match="no space left on the disk"), _translated(turso_dsn):
        raise io_error("pwritev: StorageFull")


@pytest.mark.parametrize("backend", ["sqlite", "turso"])
def test_a_damaged_file_is_no_fault_of_a_value(backend, tmp_path):
    """A supervisor would give up one run after another."""
    path = tmp_path / "jobs.db"
    dsn = f"{backend}://{path}"
    with pgqrs.connect(f"sqlite://{path}") as store:
        store.enqueue_many("tasks", ["x" * 2000] * 50)
    page = 4096
    body = path.read_bytes()
    path.write_bytes(body[:page] + b"\xff" * (len(body) - page))
    with pytest.raises(pgqrs.PgqrsConnectionError), pgqrs.connect(dsn) as store:
        store.enqueue("tasks", 1)
