"""Async tests, and the databases that they begin with.

An `async def` test runs in an event loop of its own. Where it takes `store`, that is opened in this loop before it begins and
closed when it ends. PostgreSQL's database is made once and emptied for each test.
"""

import asyncio
import inspect
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

import pgqrs
from pgqrs.clients.connecting import Connecting
from tests.conftest import turso_dsn_on
from tests.emptied import Emptied
from tests.postgres_server import Postgres
from tests.s3_server import S3Server
from tests.surface import given


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    given.the_test_begins()
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    asyncio.run(with_stores_open(pyfuncitem.obj, arguments))
    return True


async def with_stores_open(test: Callable[..., Any], arguments: dict[str, Any]) -> None:
    async with AsyncExitStack() as stack:
        for name, value in arguments.items():
            if isinstance(value, Connecting):
                arguments[name] = await stack.enter_async_context(value)
        await test(**arguments)


@pytest.fixture
def store(dsn: str) -> Connecting:
    """An async store, its schema installed and empty."""
    return pgqrs.connect(dsn)


@pytest.fixture
def blocking(dsn: str) -> Iterator[pgqrs.BlockingStore]:
    """A blocking store on the same database."""
    with pgqrs.connect(dsn) as store:
        yield store


@pytest.fixture
def dsn(request: pytest.FixtureRequest) -> str:
    """A database of each backend in turn, its schema installed and empty."""
    return str(request.getfixturevalue(f"installed_{request.param}_dsn"))


@pytest.fixture
def installed_sqlite_dsn(installed_sqlite_file: Path, tmp_path: Path) -> str:
    shutil.copy(installed_sqlite_file, tmp_path / "pgqrs.db")
    return f"sqlite://{tmp_path / 'pgqrs.db'}"


@pytest.fixture
def installed_turso_dsn(request: pytest.FixtureRequest, installed_sqlite_file: Path, tmp_path: Path) -> str:
    shutil.copy(installed_sqlite_file, tmp_path / "pgqrs.db")  # the format is one
    return turso_dsn_on(tmp_path / "pgqrs.db", request)


@pytest.fixture
def installed_s3_dsn(installed_sqlite_file: Path, s3_server: S3Server) -> str:
    dsn = s3_server.new_dsn()
    s3_server.put(dsn, installed_sqlite_file.read_bytes())
    return dsn


@pytest.fixture
def installed_postgres_dsn(installed_postgres_database: Emptied) -> str:
    installed_postgres_database.empty()
    return installed_postgres_database.dsn


@pytest.fixture
def empty_dsn(request: pytest.FixtureRequest, dsn: str, tmp_path: Path) -> Iterator[str]:
    """A database without our tables."""
    if dsn.startswith(("sqlite", "turso")):
        yield f"{dsn.partition(':')[0]}://{tmp_path / 'empty.db'}"
        return
    if dsn.startswith("s3"):
        yield request.getfixturevalue("s3_server").new_dsn()
        return
    server: Postgres = request.getfixturevalue("postgres_server")
    name = f"pgqrs_surface_empty_{os.getpid()}"
    yield server.create_database(name)
    server.drop_database(name)


@pytest.fixture(scope="session")
def installed_postgres_database(postgres_server: Postgres) -> Iterator[Emptied]:
    database = Emptied(postgres_server, f"pgqrs_surface_{os.getpid()}")
    with pgqrs.connect(database.dsn) as store:
        store.install()
    yield database
    with suppress(psycopg.OperationalError):  # a private server has taken it along
        database.drop()
