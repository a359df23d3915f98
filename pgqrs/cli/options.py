"""The parts that all commands share: the options for the database, the types of arguments, and the
exit status of errors.
"""

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from pgqrs import errors
from pgqrs.arguments import durations
from pgqrs.config import Config, DurabilityMode, database_file, sqlite_path
from pgqrs.model.bounds import NAME_CHARS_MAX
from pgqrs.model.printable import printable_lines

if TYPE_CHECKING:
    from pgqrs.clients.blocking import Store
    from pgqrs.store import MessageStore

EXIT_FAILED, EXIT_USAGE, EXIT_DATABASE = 1, 2, 3
EXIT_INTERRUPTED = 130  # as in shells

ID_MAX = 2**63 - 1

# These errors are mistakes in the call, not failures of the work: something does not exist or does
# not fit.
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
    """The database that the options name. It is opened when a command first uses it."""

    def __init__(self, dsn: str | None, schema: str | None) -> None:
        self._dsn = dsn
        self._schema = schema

    @property
    def chosen(self) -> bool:
        """Whether --dsn was given."""
        return self._dsn is not None

    def config(self) -> Config:
        # An empty --dsn comes from an unset variable in a script. The default would be a database
        # that the user did not mean.
        config = Config.load(dsn=self._dsn, schema=self._schema)
        if not _is_text(config.dsn):
            raise errors.ConfigError("the DSN is not UTF-8")
        if config.backend == "s3" and config.s3_mode is DurabilityMode.Local:
            raise errors.ConfigError(
                "in s3_mode local, writes stay on this machine until "
                "sync(), which only a program can call; use durable"
            )
        return config

    @contextmanager
    def store(self) -> "Iterator[Store]":
        """Yields a client's store on a complete database. Raises an error if the database does not
        exist, because only `install` creates one.
        """
        from pgqrs.clients.blocking import Store

        with Store(self._existing(), insist=True) as store:
            store.verify()
            yield store

    def lasting(self) -> Config:
        """Returns the configuration of the database. Refuses a database that ends with this
        process.
        """
        config = self.config()
        if config.backend == "sqlite" and sqlite_path(config.dsn) == ":memory:":
            raise errors.ConfigError(
                "an in-memory database is gone with its process; name a file or a server"
            )
        return config

    @contextmanager
    def messages(self) -> "Iterator[MessageStore]":
        """Yields the operations on the database that the store is built on. They never create a
        queue or a workflow.
        """
        from pgqrs.store import open_store

        with closing(open_store(self._existing(), insist=True)) as messages:
            messages.verify()
            yield messages

    def _existing(self) -> Config:
        config = self.lasting()
        if (path := database_file(config.dsn)) is not None and not Path(path).exists():
            kind = {"sqlite": "SQLite", "turso": "Turso"}[config.backend]
            raise errors.PgqrsConnectionError(
                f"there is no {kind} database at {path}; name another with --dsn or PGQRS_DSN, or make it: "
                f"pgqrs install --dsn {config.dsn}"
            )
        return config


def database_options(
    command: Callable[..., Any], default: str = "$PGQRS_DSN, else as in pgqrs.toml, else ./pgqrs.db"
) -> Callable[..., Any]:
    """Adds the database options to a command. `default` describes, in the help, the database that
    is used without --dsn.
    """

    @click.option("--dsn", metavar="DSN", help=f"The database [default: {default}].")
    @click.option(
        "--schema", metavar="NAME", help="The PostgreSQL schema [default: $PGQRS_SCHEMA, else public]."
    )
    @functools.wraps(command)
    def with_database(*args: Any, dsn: str | None, schema: str | None, **kwargs: Any) -> Any:
        return command(*args, database=Database(dsn, schema), **kwargs)

    return with_database


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(command)


class Duration(click.ParamType):  # type: ignore[type-arg]  # generic only in the newest click
    name = "DURATION"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return durations.seconds(value.strip())
        except errors.ValidationError as e:
            self.fail(str(e), param, ctx)


class Address(click.ParamType):  # type: ignore[type-arg]
    name = "HOST:PORT"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int]:
        host, _, port = value.rpartition(":")
        is_ipv6 = host.startswith("[") and host.endswith("]")
        if not port.isdecimal() or not 0 < int(port) < 65536 or (":" in host and not is_ipv6):
            self.fail(
                f"{value!r} is no address: give host and port, such as 127.0.0.1:8080 or [::1]:8080",
                param,
                ctx,
            )
        return (host[1:-1] if is_ipv6 else host) or "127.0.0.1", int(port)


class Size(click.ParamType):  # type: ignore[type-arg]
    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return durations.size(value)
        except errors.ValidationError as e:
            self.fail(str(e), param, ctx)


class Name(click.ParamType):  # type: ignore[type-arg]
    """The name of a queue or a workflow that a database can store."""

    name = "NAME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not value or len(value) > NAME_CHARS_MAX or not _is_text(value):
            self.fail(
                f"no queue or workflow has such a name: it is 1 to {NAME_CHARS_MAX} characters of UTF-8",
                param,
                ctx,
            )
        return str(value)


class Count(click.IntRange):
    name = "whole number"


class Id(click.IntRange):
    """The id of a run, which is the id of its message."""

    name = "ID"

    def __init__(self) -> None:
        super().__init__(1, ID_MAX)


def exit_code(error: errors.PgqrsError) -> int:
    if isinstance(error, _DATABASE):
        return EXIT_DATABASE
    return EXIT_USAGE if isinstance(error, _USAGE) else EXIT_FAILED


def fail(message: str, code: int) -> NoReturn:
    """Prints an error and exits. Lines after the first, such as a traceback of user code, are indented."""
    click.echo(printable_lines(f"pgqrs: {message}", indent="  "), err=True)
    sys.exit(code)


def _is_text(value: str) -> bool:
    """Whether an argument is UTF-8 text. No database accepts other text."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
