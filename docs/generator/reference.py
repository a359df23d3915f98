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
from pgqrs.settings import SETTINGS


def settings() -> str:
    rows = [
        [f"`{s.name}`", f"`PGQRS_{s.variable}`" if s.variable else "", _default(s.name), s.meaning]
        for s in SETTINGS.values()
    ]
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
