"""The group of commands. Each is imported when it is called: `pgqrs --help` needs none of them."""

import importlib
import sys

import click

from pgqrs import errors
from pgqrs.cli.options import exit_code, fail

# name → module, in the order in which help lists them
COMMANDS = {
    "supervise": "supervise",
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
    """Durable queues and workflows on worker processes."""


def run() -> None:
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Exit as e:
        sys.exit(e.exit_code)
    except click.ClickException as e:
        e.show()
        sys.exit(e.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except errors.PgqrsError as e:
        fail(str(e), exit_code(e))
