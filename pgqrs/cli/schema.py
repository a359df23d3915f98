"""`pgqrs install` and `pgqrs verify`."""

import click

from pgqrs.cli import output
from pgqrs.cli.options import Database, database_options, json_option


@click.command()
@database_options
@json_option
def install(database: Database, as_json: bool) -> None:
    """Create the tables, or upgrade them to this version.

    The command may be repeated, and may run while others use the database. It adopts a database of
    pgqrs 0.15. On PostgreSQL the schema of --schema must exist.

    \b
    Example:
      pgqrs install --dsn postgresql://me@db.example/work
    """
    from pgqrs.clients.blocking import Store

    with Store(database.lasting()) as store:
        migrations = store.install()
        version = store.verify()
        _warn(store.messages.cautions())
    if as_json:
        output.json_document({"version": version, "migrations": migrations})
    elif migrations:
        click.echo(f"installed: {migrations} migration{'s'[: migrations > 1]}, now at version {version}")
    else:
        click.echo(f"nothing to do: at version {version} already")


@click.command()
@database_options
@json_option
def verify(database: Database, as_json: bool) -> None:
    """Check that the tables exist, are complete, and have this version.

    On PostgreSQL it also warns of missing privileges and of an unsafe schema.

    \b
    Example:
      pgqrs verify && pgqrs supervise pipeline.py
    """
    with database.store() as store:
        version = store.verify()
        _warn(store.messages.cautions())
    if as_json:
        output.json_document({"version": version})
    else:
        click.echo(f"complete, at version {version}")


def _warn(cautions: list[str]) -> None:
    for caution in cautions:
        click.echo(f"warning: {output.clean(caution)}", err=True)
