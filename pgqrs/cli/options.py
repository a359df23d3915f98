"""What every command shares: which database, which form of output, and how an error ends."""

import functools
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import click

from pgqrs import errors
from pgqrs.config import Config, default_dsn

if TYPE_CHECKING:
    from pgqrs.client import Store

EXIT_FAILED, EXIT_USAGE, EXIT_DATABASE = 1, 2, 3

# Asked for what is not there or does not fit: a mistake in the call, not a failure of the work.
_USAGE = (
    errors.ConfigError,
    errors.TargetError,
    errors.ValidationError,
    errors.SerializationError,
    errors.QueueNotFoundError,
    errors.WorkflowNotFoundError,
    errors.RunNotFoundError,
    errors.MessageNotFoundError,
)
_DATABASE = (errors.PgqrsConnectionError, errors.SchemaError, errors.DatabaseError)


class Database:
    """The database that the options name, opened when asked for."""

    def __init__(self, dsn: str | None, schema: str | None) -> None:
        self._dsn = dsn
        self._schema = schema

    @property
    def chosen(self) -> bool:
        """Whether --dsn was given."""
        return self._dsn is not None

    def config(self) -> Config:
        return Config(self._dsn or default_dsn(os.environ), schema=self._schema)

    def store(self) -> "Store":
        """Not open yet: `with database.store() as store`."""
        from pgqrs.client import Store

        return Store(self.config())


def database_options(command: Callable[..., Any]) -> Callable[..., Any]:
    @click.option("--dsn", metavar="DSN", help="The database [default: $PGQRS_DSN, else ./pgqrs.db].")
    @click.option("--schema", metavar="NAME", help="The PostgreSQL schema [default: public].")
    @functools.wraps(command)
    def with_database(*args: Any, dsn: str | None, schema: str | None, **kwargs: Any) -> Any:
        return command(*args, database=Database(dsn, schema), **kwargs)

    return with_database


def exit_code(error: errors.PgqrsError) -> int:
    if isinstance(error, _DATABASE):
        return EXIT_DATABASE
    return EXIT_USAGE if isinstance(error, _USAGE) else EXIT_FAILED


def fail(message: str, code: int) -> NoReturn:
    click.echo(f"pgqrs: {message}", err=True)
    sys.exit(code)
