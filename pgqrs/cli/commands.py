"""The command group. Each command is imported when it is called, so that `pgqrs --help` loads
neither a database driver nor rich.
"""

import importlib
import logging
import os
import sys

import click

from pgqrs import errors
from pgqrs.cli.options import EXIT_DATABASE, EXIT_FAILED, EXIT_INTERRUPTED, exit_code, fail
from pgqrs.program import interpreter

# Command name → module, in the order in which help lists the commands.
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

    Exit codes: 0 success, 1 the work failed, 2 wrong usage, 3 database error. A supervisor whose
    runs failed exits with 0, unless it has --fail.
    """


def run() -> None:
    interpreter.open_standard_descriptors()
    interpreter.own_packages()
    # Data may contain any character. A terminal that cannot show one must not end the command.
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")
    # psycopg logs warnings about errors that pgqrs catches and reports itself.
    logging.getLogger("psycopg").addHandler(logging.NullHandler())
    try:
        cli.main(standalone_mode=False)
        if sys.stdout is not None:  # None if the calling program closed it
            sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as e:
        e.show()
        sys.exit(e.exit_code)
    except click.ClickException as e:
        fail(_told(e), e.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(EXIT_INTERRUPTED)
    except errors.PgqrsError as e:
        # A driver's message may have several lines, with a caret under the SQL: join them. Keep the
        # lines of a message that quotes user code.
        told, code = str(e), exit_code(e)
        fail(" ".join(told.split()) if code == EXIT_DATABASE else told, code)
    except OSError as e:
        # click has handled a closed pipe already. Buffered output must not be written again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        fail(str(e), EXIT_FAILED)


def _told(error: click.ClickException) -> str:
    """Returns the error in one line. click would print the usage as well."""
    told = error.format_message()
    context = getattr(error, "ctx", None)
    return f"{told.rstrip('.')}; see: {context.command_path} --help" if context else told
