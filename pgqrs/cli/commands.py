"""The group of commands. Each is imported when it is called: `pgqrs --help` needs neither a driver nor rich."""

import importlib
import logging
import os
import sys

import click

from pgqrs import errors
from pgqrs.cli.options import EXIT_DATABASE, EXIT_FAILED, EXIT_INTERRUPTED, exit_code, fail
from pgqrs.program import interpreter

# name → module, in the order in which help lists them
COMMANDS = {
    "supervise": "supervise",
    "trigger": "work",
    "enqueue": "work",
    "runs": "look",
    "run": "look",
    "queues": "look",
    "workers": "look",
    "dead": "look",
    "replay": "work",
    "cancel": "work",
    "resume": "work",
    "stacks": "stacks",
    "install": "schema",
    "verify": "schema",
    "demo": "demo",
}


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"pgqrs.cli.{COMMANDS[cmd_name]}")
        command: click.Command = getattr(module, cmd_name)
        return command


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="pgqrs")
def cli() -> None:
    """Durable queues and workflows on worker processes.

    Exit codes: 0 done (also of a supervisor whose runs failed, unless it has --fail), 1 the work failed, 2 wrong usage, 3
    trouble with the database.
    """


def run() -> None:
    interpreter.open_standard_descriptors()
    interpreter.own_packages()
    # Data holds whatever characters its users like; a terminal that cannot show one must not end the command.
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")
    # psycopg warns of what we catch and tell in our own words.
    logging.getLogger("psycopg").addHandler(logging.NullHandler())
    try:
        cli.main(standalone_mode=False)
        if sys.stdout is not None:  # closed by who called us
            sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as e:
        e.show()
        sys.exit(e.exit_code)
    except click.ClickException as e:
        fail(_told(e), e.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(EXIT_INTERRUPTED)
    except errors.PgqrsError as e:
        # A driver's message may be several lines with a caret under the SQL; one that quotes user code stays as it is.
        told, code = str(e), exit_code(e)
        fail(" ".join(told.split()) if code == EXIT_DATABASE else told, code)
    except OSError as e:
        # Of a reader that has gone away click has taken care. What is still buffered must not be tried again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        fail(str(e), EXIT_FAILED)


def _told(error: click.ClickException) -> str:
    """One line where click would print the usage as well."""
    told = error.format_message()
    context = getattr(error, "ctx", None)
    return f"{told.rstrip('.')}; see: {context.command_path} --help" if context else told
