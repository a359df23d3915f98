import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import psycopg
import pytest

from pgqrs.config import Config
from pgqrs.store import MessageStore, open_store
from tests.store.given import Clock, Consumer, Flow


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A module that says POSTGRES_ONLY is about what SQLite does not have."""
    chosen = [i for i in items if not (on_sqlite(i) and getattr(getattr(i, "module", None), "POSTGRES_ONLY", False))]
    if len(chosen) < len(items):
        config.hook.pytest_deselected(items=[i for i in items if i not in set(chosen)])
        items[:] = chosen


def on_sqlite(item: pytest.Item) -> bool:
    return hasattr(item, "callspec") and item.callspec.params.get("dsn") == "sqlite"


@pytest.fixture(scope="session")
def session_databases() -> Iterator[dict[str, str]]:
    yield {}


@pytest.fixture
def dsn(request: pytest.FixtureRequest, session_databases: dict[str, str]) -> str:
    """An empty database, of each backend in turn. To empty one of PostgreSQL takes a tenth of the time of making it."""
    backend = request.param
    if backend == "sqlite":
        return str(request.getfixturevalue("sqlite_dsn"))
    if backend not in session_databases:
        server = {"postgres": "postgres_server", "postgres-newest": "postgres_newest_server"}[backend]
        name = f"pgqrs_store_{os.getpid()}_{len(session_databases)}"
        session_databases[backend] = request.getfixturevalue(server).create_database(name)
    dsn = session_databases[backend]
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
def bare(open_another: Callable[[], MessageStore]) -> MessageStore:
    """A store whose database is empty."""
    return open_another()


@pytest.fixture
def store(bare: MessageStore) -> MessageStore:
    bare.install()
    return bare


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
