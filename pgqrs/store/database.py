"""The seam: run a named statement in a transaction. Everything above it is the same for every database."""

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
        """Runs the statement of that name; `rows` fill its {rows: …}. Returns what it selects or returns, in no order
        but its own. JSON comes as bytes or text, undecoded; times as the driver has them."""

    def script(self, sql: str) -> None:
        """Runs the statements of a migration."""


class Copying(Transaction, Protocol):
    """One of PostgreSQL's, on a connection of our own: a caller's may be in a pipeline, where there is no COPY."""

    def copy_in(self, table: str, data: bytes) -> None:
        """COPY into these columns of a table; `data` is a line a row, in COPY's text format."""


def refused_value(text: str) -> errors.DatabaseError:
    """The error for a value that the database will never take."""
    error = errors.DatabaseError(text)
    error.refuses_value = True
    return error


class Database(Protocol):
    """One database. Safe to use from several threads; refused after a fork."""

    dialect: Dialect
    dsn: str
    options: str  # that name it on the command line, the DSN left out

    def transaction(self, at: datetime | None = None) -> AbstractContextManager[Transaction]:
        """Commits on leaving, rolls back on an exception. `at` is the time that its statements take for now.

        Raises PgqrsConnectionError when the database cannot be reached or the link breaks: whether a commit under way
        then took place is unknown. SchemaError when the tables are missing. DatabaseError for what it refuses.
        Within a `calls.Call` whose caller has left it raises `calls.Left` instead of committing.
        """

    def single(self, at: datetime | None = None) -> AbstractContextManager[Transaction]:
        """The same for one statement that is a transaction by itself: a server then answers once instead of three times."""

    def reading(self) -> AbstractContextManager[Transaction]:
        """The same for statements that only read: they never wait for a writer."""

    def prepare(self) -> None:
        """What a database needs before its first migration, outside a transaction."""

    def now(self) -> datetime:
        """The time that the database's clock shows, in UTC."""

    def hint(self, queues: Iterable[str]) -> None:
        """Tells whoever listens that these queues may hold something new. Never needed, never fails."""

    def close(self) -> None: ...


class Kept(Protocol):
    """A database that is a local copy of something kept elsewhere: see `pgqrs.clients.s3`."""

    def snapshot(self) -> None: ...

    def sync(self) -> None: ...

    def state(self) -> SyncState: ...
