"""Databases for the store's tests. PostgreSQL's are made once and emptied for each test, the others begin as copies of one that was
installed once: that takes a tenth of the time."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import psycopg
import pytest

from pgqrs import errors
from pgqrs.config import Config
from pgqrs.store import MessageStore, open_store
from tests.emptied import Emptied
from tests.postgres_server import Postgres
from tests.s3_server import S3Server
from tests.store.given import Clock, Consumer, Flow


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A module that says POSTGRES_ONLY is about what SQLite does not have."""
    left_out = {
        i for i in items if embedded(i) and getattr(getattr(i, "module", None), "POSTGRES_ONLY", False)
    }
    if left_out:
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [i for i in items if i not in left_out]


def embedded(item: pytest.Item) -> bool:
    return hasattr(item, "callspec") and item.callspec.params.get("dsn") in ("sqlite", "turso", "s3")


@pytest.fixture(scope="session")
def session_databases() -> Iterator[dict[str, Emptied]]:
    made: dict[str, Emptied] = {}
    yield made
    for database in made.values():
        with suppress(psycopg.OperationalError):  # a private server has taken it along
            database.drop()


@pytest.fixture
def dsn(request: pytest.FixtureRequest, session_databases: dict[str, Emptied]) -> str:
    """A database of each backend in turn. Empty by way of `empty_dsn`, or installed by way of `store`."""
    backend = request.param
    if not backend.startswith("postgres"):
        return str(request.getfixturevalue(f"{backend}_dsn"))
    if backend not in session_databases:
        fixture = {"postgres": "postgres_server", "postgres-newest": "postgres_newest_server"}[backend]
        server: Postgres = request.getfixturevalue(fixture)
        session_databases[backend] = Emptied(server, f"pgqrs_store_{os.getpid()}_{len(session_databases)}")
    return session_databases[backend].dsn


@pytest.fixture
def empty_dsn(dsn: str) -> str:
    if dsn.startswith("postgres"):
        with psycopg.connect(dsn, autocommit=True) as pg:
            pg.execute("set client_min_messages = warning")
            pg.execute("drop schema public cascade")
            pg.execute("create schema public")
    return dsn


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def open_another(dsn: str, clock: Clock) -> Iterator[Callable[[], MessageStore]]:
    """Opens the test's database once more, with connections of its own."""
    with ExitStack() as stack:

        def opened() -> MessageStore:
            store = open_store(Config(dsn), clock)
            stack.callback(store.close)
            return store

        yield opened


@pytest.fixture
def bare(empty_dsn: str, open_another: Callable[[], MessageStore]) -> MessageStore:
    """A store whose database is empty."""
    return open_another()


@pytest.fixture
def store(
    request: pytest.FixtureRequest,
    dsn: str,
    session_databases: dict[str, Emptied],
    open_another: Callable[[], MessageStore],
) -> MessageStore:
    """A store whose schema is installed and empty."""
    if not dsn.startswith("postgres"):
        put_installed(request, dsn)
        return open_another()
    store = open_another()
    try:
        store.verify()
        next(d for d in session_databases.values() if d.dsn == dsn).empty()
    except errors.SchemaError:
        request.getfixturevalue("empty_dsn")
        store.install()
    return store


def put_installed(request: pytest.FixtureRequest, dsn: str) -> None:
    installed: Path = request.getfixturevalue("installed_sqlite_file")
    if dsn.startswith("s3"):
        server: S3Server = request.getfixturevalue("s3_server")
        server.put(dsn, installed.read_bytes())
    else:
        shutil.copy(installed, dsn.partition("://")[2].partition("?")[0])  # Turso's format is SQLite's


@pytest.fixture
def queue(store: MessageStore) -> int:
    return store.ensure_queue("tasks")


@pytest.fixture
def consumer(store: MessageStore, queue: int) -> Consumer:
    return Consumer(store, queue)


@pytest.fixture
def other(store: MessageStore, queue: int) -> Consumer:
    return Consumer(store, queue, "another")


@pytest.fixture
def flow(store: MessageStore) -> Flow:
    return Flow(store)
