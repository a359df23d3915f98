"""Numbered forward migrations, each applied once, all under one lock: two installs at once are safe.

Migration 1 is the layout of pgqrs 0.15. A database that 0.15 made has it already, so adopting one is migration 2.
"""

from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable

from pgqrs import errors
from pgqrs.config import Config
from pgqrs.store.database import Database, Transaction
from pgqrs.store.sql import Dialect

TABLES = (
    "pgqrs_queues", "pgqrs_workers", "pgqrs_messages", "pgqrs_workflows", "pgqrs_workflow_runs", "pgqrs_workflow_steps",
    "pgqrs_supervisors",
)  # fmt: skip


def install(database: Database) -> int:
    database.prepare()
    with database.transaction() as tx:
        tx.run("lock_migrations_" + database.dialect)
        tx.run("make_migrations_table")
        done = {version for (version,) in tx.run("applied_migrations")}
        _refuse_newer(max(done, default=0))
        if not done and tx.run("legacy_table_" + database.dialect):
            tx.run("note_migration", version=1, name="baseline, made by pgqrs 0.15")
            done.add(1)
        missing = [(v, file) for v, file in _migrations(database.dialect) if v not in done]
        for version, file in missing:
            tx.script(file.read_text())
            tx.run("note_migration", version=version, name=file.name.removesuffix(".sql"))
        return len(missing)


def verify(database: Database) -> int:
    """The version. What the migrations table says is checked against the columns that are there: a restored dump or a
    hand at work may have left less."""
    with database.reading() as tx:
        version = _version(tx)
        there = _columns(tx, database.dialect)
    _refuse_newer(version)
    if version < VERSION:
        raise errors.SchemaError(
            f"the schema is at version {version}, this pgqrs needs {VERSION}; run: pgqrs install {database.options}"
        )
    for table, columns in _expected_columns().items():
        if missing := sorted(columns - there.get(table, frozenset())):
            lost = (
                f"columns of the table {table} are missing: {', '.join(missing)}"
                if table in there
                else f"the table {table} is missing"
            )
            raise errors.SchemaError(
                f"the schema is said to be at version {version}, but {lost}; restore the database from a backup, or name an "
                f"empty one and run: pgqrs install {database.options}"
            )
    return version


def _version(tx: Transaction) -> int:
    return int(tx.run("schema_version")[0][0] or 0)


def _columns(tx: Transaction, dialect: Dialect) -> dict[str, frozenset[str]]:
    """The columns of each of our tables that is there."""
    found: dict[str, frozenset[str]] = {}
    for table, column in tx.run("columns_" + dialect, [(t,) for t in TABLES]):
        found[table] = found.get(table, frozenset()) | {column}
    return found


@cache
def _expected_columns() -> dict[str, frozenset[str]]:
    """Those of a fresh installation, in memory: every database has the same."""
    from pgqrs.store.sqlite import SqliteDatabase

    database = SqliteDatabase(Config("sqlite::memory:"))
    try:
        install(database)
        with database.reading() as tx:
            return _columns(tx, database.dialect)
    finally:
        database.close()


def _refuse_newer(version: int) -> None:
    if version > VERSION:
        raise errors.SchemaError(
            f"the schema is at version {version}, newer than this pgqrs knows ({VERSION}); upgrade the package"
        )


def _migrations(dialect: str) -> list[tuple[int, Traversable]]:
    found = files("pgqrs.store").joinpath("schema", dialect).iterdir()
    return sorted((int(f.name[:4]), f) for f in found if f.name.endswith(".sql"))


VERSION = max(version for version, _ in _migrations("postgres"))
