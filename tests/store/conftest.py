"""Databases for the store's tests. PostgreSQL's are made once and emptied for each test: that takes a tenth of the time."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import psycopg
import pytest

from pgqrs import errors
from pgqrs.config import Config
from pgqrs.store import MessageStore, open_store
from tests.postgres_server import Postgres
from tests.store.given import Clock, Consumer, Flow

DELETE_ALL = """
do $$
declare t text;
begin
    for t in select tablename from pg_tables where schemaname = 'public' and tablename not like '%migrations' loop
        execute format('alter table %I disable trigger all; delete from %I; alter table %I enable trigger all', t, t, t);
    end loop;
    perform setval(format('%I', sequencename)::regclass, 1, false) from pg_sequences where schemaname = 'public';
end $$
"""


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
def session_databases() -> Iterator[dict[str, tuple[Postgres, str]]]:
    made: dict[str, tuple[Postgres, str]] = {}
    yield made
    for server, name in made.values():
        with suppress(psycopg.OperationalError):  # a private server has taken it along
            server.drop_database(name)


@pytest.fixture
def dsn(request: pytest.FixtureRequest, session_databases: dict[str, tuple[Postgres, str]]) -> str:
    """A database of each backend in turn. Empty by way of `empty_dsn`, or installed by way of `store`."""
    backend = request.param
    if not backend.startswith("postgres"):
        return str(request.getfixturevalue(f"{backend}_dsn"))
    if backend not in session_databases:
        fixture = {"postgres": "postgres_server", "postgres-newest": "postgres_newest_server"}[backend]
        server, name = request.getfixturevalue(fixture), f"pgqrs_store_{os.getpid()}_{len(session_databases)}"
        server.create_database(name)
        session_databases[backend] = server, name
    server, name = session_databases[backend]
    return server.dsn(name)


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
def store(request: pytest.FixtureRequest, dsn: str, open_another: Callable[[], MessageStore]) -> MessageStore:
    """A store whose schema is installed and empty."""
    store = open_another()
    try:
        store.verify()
        assert dsn.startswith("postgres")
        with psycopg.connect(dsn, autocommit=True) as pg:
            pg.execute(DELETE_ALL)
    except errors.SchemaError:
        request.getfixturevalue("empty_dsn")
        store.install()
    return store


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
