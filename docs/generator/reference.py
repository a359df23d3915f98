"""The parts of the reference that are made from the code: commands, settings, exit codes, errors.

`hooks.py` puts each in place of its marker in a page.
"""

import inspect
from collections.abc import Callable, Iterator

import click

import pgqrs
from pgqrs import config
from pgqrs.cli.commands import cli
from pgqrs.config import Config

# What a setting does. Its name, variable, type and default are the code's.
SETTINGS = {
    "dsn": "The database. See [backends](../backends.md).",
    "schema": "The schema of the tables on PostgreSQL. It must exist.",
    "max_connections": "The largest number of connections that a program opens to PostgreSQL.",
    "connection_timeout_seconds": "How long a call waits for a free connection.",
    "default_lock_time_seconds": "How long `dequeue()` holds "
    "a message. Unset, `dequeue()` holds a message for 30 s.",
    "default_max_batch_size": "The number of messages that a "
    "consumer takes at a time, unless the call names a number.",
    "max_read_ct": "The number of deliveries of a plain message before the message is dead.",
    "heartbeat_interval_seconds": "How often a consumer that polls renews its heartbeat.",
    "poll_interval_ms": "How often a consumer that polls looks for messages.",
    "max_payload_size_bytes": "The largest payload, argument or result, as JSON.",
    "max_string_length": "Producers of the 0.15 API: the longest text in a payload.",
    "max_object_depth": "Producers of the 0.15 API: the deepest nesting of a payload.",
    "forbidden_keys": "Producers of the 0.15 API: keys that a payload must not have.",
    "required_keys": "Producers of the 0.15 API: keys that a payload must have.",
    "max_enqueue_per_second": "Producers of the 0.15 API: "
    "the rate of one producer. `None` switches the limit off.",
    "max_enqueue_burst": "Producers of the 0.15 API: messages that "
    "may exceed the rate at once. `None` switches the limit off.",
    "reclaim_after_seconds": "A supervisor takes over messages that pgqrs 0.15 clients have held for this "
    "time after their lock expired. `None`: never.",
    "sqlite_use_wal": "Whether SQLite uses a write-ahead log.",
    "prepared_statements": "Whether prepared statements are used on PostgreSQL. `None`: unless there is a "
    "[connection pooler](../pgbouncer.md).",
    "listen_dsn": "A direct connection on which a supervisor listens, if `dsn` leads through a "
    "[connection pooler](../pgbouncer.md).",
    "s3_mode": "When a write is in S3: `durable` (before "
    "its call returns) or `local` (at the next `sync()`).",
    "s3_cache_dir": "The folder of the local copy of an S3 object. `None`: a folder in the user's cache.",
}


def settings() -> str:
    parameters = inspect.signature(Config).parameters
    if parameters.keys() != SETTINGS.keys():
        raise ValueError(f"SETTINGS must describe each setting: {parameters.keys() ^ SETTINGS.keys()}")
    variables = {name: f"`PGQRS_{variable}`" for variable, name in config._VARIABLES.items()}
    rows = [[f"`{name}`", variables.get(name, ""), _default(name), SETTINGS[name]] for name in parameters]
    return _table(["setting", "variable", "default", "meaning"], rows)


def _default(name: str) -> str:
    if name == "dsn":
        return f"`{config.DSN_DEFAULT}`"
    value = getattr(Config(config.DSN_DEFAULT), name)
    return f"`{value.value}`" if isinstance(value, config.DurabilityMode) else f"`{value}`"


def commands() -> str:
    """Each command as `--help` shows it."""
    context = click.Context(
        cli,
        info_name="pgqrs",
        terminal_width=100,
        help_option_names=cli.context_settings["help_option_names"],
    )
    parts = []
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        sub = click.Context(command, parent=context, info_name=name, terminal_width=100)
        summary = (command.help or "").strip().partition("\n\n")[0].replace("\n", " ")
        parts.append(f"## pgqrs {name} {{ #{name} }}\n\n{summary}\n\n```text\n{command.get_help(sub)}\n```\n")
    return "\n".join(parts)


def errors() -> str:
    """Every error of the package, below the one that it is a kind of."""
    return "".join(
        f"{'    ' * depth}- [`{error.__name__}`](python.md#pgqrs.errors.{error.__name__})"
        f"{_also(error)}: {_summary(error)}\n"
        for depth, error in _tree(pgqrs.PgqrsError, 0)
    )


def _tree(error: type[Exception], depth: int) -> Iterator[tuple[int, type[Exception]]]:
    yield depth, error
    for kind in sorted(error.__subclasses__(), key=lambda kind: kind.__name__):
        if kind.__name__ in pgqrs.__all__:
            yield from _tree(kind, depth + 1)


def _also(error: type[Exception]) -> str:
    """The exceptions of Python that this one is as well."""
    others = [f"`{base.__name__}`" for base in error.__bases__ if base.__module__ == "builtins"]
    return "" if error is pgqrs.PgqrsError or not others else f" (also Python's {' and '.join(others)})"


def _summary(error: type[Exception]) -> str:
    return " ".join((inspect.getdoc(error) or "").partition("\n\n")[0].split())


def _table(header: list[str], rows: list[list[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in [header, ["---"] * len(header), *rows])


PARTS: dict[str, Callable[[], str]] = {"settings": settings, "commands": commands, "errors": errors}
