"""The interface of a database: execute a named statement in a transaction. All code above this
interface is the same for every database. A new backend implements `Database`, and is added in
`open_database` (pgqrs/store/__init__.py) and `backend_of` (pgqrs/config.py).
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, Protocol

from pgqrs import errors
from pgqrs.model.states import SyncState
from pgqrs.store.sql import Dialect

Row = tuple[Any, ...]


class Transaction(Protocol):
    dialect: Dialect

    def run(self, statement: str, rows: Iterable[Row] | None = None, **params: Any) -> list[Row]:
        """Executes the statement with this name, and returns its result rows in the statement's own
        order. `rows` fill the {rows: …} of the statement. JSON values are returned as bytes or
        text, and times as the driver returns them.
        """

    def script(self, sql: str) -> None:
        """Executes the statements of a migration."""


class Copying(Transaction, Protocol):
    """A PostgreSQL transaction on pgqrs's own connection, which allows COPY. A caller's connection
    may be in a pipeline, which does not.
    """

    def copy_in(self, table: str, data: bytes) -> None:
        """Executes COPY into the columns of a table that `table` names. `data` has one line per
        row, in COPY's text format.
        """


def refused_value(text: str) -> errors.DatabaseError:
    """Returns the error for a value that the database will never accept."""
    error = errors.DatabaseError(text)
    error.refuses_value = True
    return error


class Database(Protocol):
    """One database. It may be used from several threads, but not after a fork."""

    dialect: Dialect
    dsn: str
    # The command-line options that name this database, without the DSN.
    options: str

    def transaction(self, at: datetime | None = None) -> AbstractContextManager[Transaction]:
        """Yields a transaction. Commits it at the end of the block, and rolls it back after an
        exception. `at` replaces the current time in its statements.

        Raises PgqrsConnectionError if the database cannot be reached or the connection breaks. If a
        commit was in progress, nobody knows then whether it took place. Raises SchemaError if the
        tables are missing, and DatabaseError if the database refuses something. Inside a
        `calls.Call` whose caller has stopped waiting, raises `calls.Left` instead of committing.
        """

    def single(self, at: datetime | None = None) -> AbstractContextManager[Transaction]:
        """Yields a transaction like `transaction`, for one statement that commits by itself. This
        takes one round trip to a server instead of three.
        """

    def reading(self) -> AbstractContextManager[Transaction]:
        """Yields a transaction like `transaction`, for statements that only read. They never wait
        for a writer.
        """

    def prepare(self) -> None:
        """Prepares a database for its first migration, outside a transaction."""

    def now(self) -> datetime:
        """Returns the time of the database's clock, in UTC."""

    def hint(self, queues: Iterable[str]) -> None:
        """Notifies listeners that these queues may have new messages. A hint is optional, and
        sending it never fails.
        """

    def close(self) -> None: ...


class Kept(Protocol):
    """A database whose local copy is synchronized with a remote object. See `pgqrs.clients.s3`."""

    def snapshot(self) -> None: ...

    def sync(self) -> None: ...

    def state(self) -> SyncState: ...
