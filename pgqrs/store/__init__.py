"""The storage of all state. `open_store` opens the database that a DSN names. A new backend is
added in `open_database`, and its scheme in `backend_of` (pgqrs/config.py).
"""

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING

from pgqrs.config import Config
from pgqrs.store.database import Database
from pgqrs.store.store import MessageStore

if TYPE_CHECKING:
    from pgqrs.store.sqlite import SqliteDatabase

__all__ = ["MessageStore", "open_database", "open_store"]


def open_store(
    config: Config,
    clock: Callable[[], datetime] | None = None,
    steady_plans: bool = False,
    insist: bool = False,
) -> MessageStore:
    """Opens a store on the database that `open_database` opens. On S3, calls that meet a conflict
    are retried if `insist` is set. Calls of a supervisor are always retried.
    """
    database = open_database(config, clock, steady_plans)
    if config.backend == "s3":
        from pgqrs.store.s3.conflicts import CopiedStore, InsistentStore
        from pgqrs.store.s3.database import S3Database

        assert isinstance(database, S3Database)
        if steady_plans or insist:
            return InsistentStore(database, endless=steady_plans)
        return CopiedStore(database)
    return MessageStore(database)


def open_database(
    config: Config, clock: Callable[[], datetime] | None = None, steady_plans: bool = False
) -> Database:
    """Opens a database. Raises PgqrsConnectionError if the database cannot be reached, and
    ConfigError if its optional dependency is not installed.

    `clock` replaces the database's clock in tests. `steady_plans` is for a supervisor: its
    statements must not depend on the planner's statistics, and it watches S3 for changes itself.
    """
    backend = config.backend
    if backend == "sqlite":
        from pgqrs.store.sqlite import SqliteDatabase

        return _held(SqliteDatabase(config, clock), steady_plans)
    if backend == "postgres":
        from pgqrs.store.postgresql.database import PostgresDatabase

        return PostgresDatabase(config, clock, steady_plans)
    if backend == "turso":
        from pgqrs.store.turso.database import TursoDatabase

        return _held(TursoDatabase(config, clock), steady_plans)
    from pgqrs.store.s3.database import S3Database

    return S3Database(config, clock, following=steady_plans)


def _held(database: "SqliteDatabase", by_supervisor: bool) -> "SqliteDatabase":
    if by_supervisor:
        database.holder = "supervisor"
    return database
