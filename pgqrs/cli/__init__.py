"""The command line. See `pgqrs --help`."""


def main() -> None:
    from pgqrs.cli.commands import run

    run()
