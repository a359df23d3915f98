"""Numbered forward migrations. Each is applied once, under one lock, so concurrent installs are
safe.

Migration 1 is the layout of pgqrs 0.15. A database that 0.15 created has this layout already, so
its adoption begins with migration 2.

A migration that only adds something names the oldest version of the code that may still use the
database, on a line of its own:

    -- oldest code: version 7

Without this line, only code of the migration's own version or later may use the database. The
database stores the largest of these numbers. In a rolling deployment, run the install first; older
programs then keep working.
"""

import re
import uuid
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable

from pgqrs import errors
from pgqrs.config import Config
from pgqrs.store.database import Database, Row, Transaction
from pgqrs.store.sql import Dialect

TABLES = (
    "pgqrs_queues", "pgqrs_workers", "pgqrs_messages", "pgqrs_workflows", "pgqrs_workflow_runs",
    "pgqrs_workflow_steps", "pgqrs_supervisors", "pgqrs_database", "pgqrs_maps", "pgqrs_map_inputs",
    "pgqrs_map_outcomes", "pgqrs_map_tries", "pgqrs_map_parts", "pgqrs_map_ranges",
)  # fmt: skip
# Limits the wait for each lock. Other statements queue behind a migration that waits.
LOCK_TIMEOUT = "5s"
LOCKED = "55P03"  # lock_not_available
# SQL_ASCII stores any bytes, and pgqrs writes UTF-8.
ENCODINGS = ("UTF8", "SQL_ASCII")


def install(database: Database) -> int:
    database.prepare()
    try:
        with database.transaction() as tx:
            return _install(tx)
    except errors.PgqrsConnectionError as e:
        if getattr(e.__cause__, "sqlstate", None) != LOCKED:
            raise
        raise errors.PgqrsConnectionError(
            f"install waited for {LOCK_TIMEOUT} for a lock that another transaction "
            "holds on a table of pgqrs, and changed nothing; run it again, or end that "
            "transaction first (pg_stat_activity shows it, pg_terminate_backend ends it)"
        ) from e


def _install(tx: Transaction) -> int:
    if tx.dialect == "postgres":
        tx.run("unhurried_postgres")
    tx.run("lock_migrations_" + tx.dialect)
    if tx.dialect == "postgres":
        tx.run("patience_postgres", lock_timeout=LOCK_TIMEOUT)
    tx.run("make_migrations_table")
    done = {version for (version,) in tx.run("applied_migrations")}
    if max(done, default=0) > VERSION:
        _refuse_newer(max(done), tx.run("database_row"))
        return 0
    if not done and tx.dialect == "postgres":
        _refuse_encoding(tx)
    if not done and tx.run("legacy_table_" + tx.dialect):
        tx.run("note_migration", version=1, name="baseline, made by pgqrs 0.15")
        done.add(1)
    missing = [(v, file) for v, file in _migrations(tx.dialect) if v not in done]
    for version, file in missing:
        tx.script(file.read_text())
        tx.run("note_migration", version=version, name=file.name.removesuffix(".sql"))
    if missing or not tx.run("database_row"):
        identify(tx)
    return len(missing)


def _refuse_encoding(tx: Transaction) -> None:
    [(encoding,)] = tx.run("encoding_postgres")
    if encoding not in ENCODINGS:
        raise errors.SchemaError(
            f"the database is encoded in {encoding}, which cannot hold every text; make one for pgqrs: "
            "create database … encoding 'UTF8' template template0"
        )


def identify(tx: Transaction) -> None:
    """Gives the database an identity if it has none. Also stores which versions of the code may use
    the database.
    """
    oldest = max(_oldest_code(v, file) for v, file in _migrations(tx.dialect))
    tx.run("identify_database", identity=uuid.uuid4().hex, version=VERSION, oldest_version=oldest)


def _oldest_code(version: int, file: Traversable) -> int:
    found = re.search(r"^-- oldest code: version (\d+)$", file.read_text(), re.M)
    return int(found[1]) if found else version


def verify(database: Database) -> int:
    """Returns the version of the schema. Also checks that the columns of that version exist,
    because a restored dump or manual changes may have removed some.
    """
    with database.reading() as tx:
        version = _version(tx)
        if version > VERSION:
            _refuse_newer(version, tx.run("database_row"))
        there = _columns(tx, database.dialect)
    if version < VERSION:
        raise errors.SchemaError(
            f"the schema is at version {version}, this pgqrs needs "
            f"{VERSION}; run: pgqrs install {database.options}"
        )
    for table, columns in _expected_columns().items():
        if missing := sorted(columns - there.get(table, frozenset())):
            lost = (
                f"columns of the table {table} are missing: {', '.join(missing)}"
                if table in there
                else f"the table {table} is missing"
            )
            raise errors.SchemaError(
                f"the schema is said to be at version {version}, but {lost}; restore the database from a "
                f"backup, or name an empty one and run: pgqrs install {database.options}"
            )
    return version


def _version(tx: Transaction) -> int:
    return int(tx.run("schema_version")[0][0] or 0)


def _columns(tx: Transaction, dialect: Dialect) -> dict[str, frozenset[str]]:
    """Returns the columns of each existing table of pgqrs."""
    found: dict[str, frozenset[str]] = {}
    for table, column in tx.run("columns_" + dialect, [(t,) for t in TABLES]):
        found[table] = found.get(table, frozenset()) | {column}
    return found


@cache
def _expected_columns() -> dict[str, frozenset[str]]:
    """Returns the columns of a fresh installation, which is made in memory. They are the same on
    every kind of database.
    """
    from pgqrs.store.sqlite import SqliteDatabase

    database = SqliteDatabase(Config("sqlite::memory:"))
    try:
        install(database)
        with database.reading() as tx:
            return _columns(tx, database.dialect)
    finally:
        database.close()


def _refuse_newer(version: int, row: list[Row]) -> None:
    """Raises SchemaError if the database is newer than this code, unless the database says that
    this code may use it.
    """
    oldest = row[0][2] if row and row[0][1] == version else version
    if oldest > VERSION:
        raise errors.SchemaError(
            f"the schema is at version {version}, newer than this pgqrs knows ({VERSION}), and takes no "
            f"code that is older than version {oldest}; upgrade the package"
        )


def _migrations(dialect: str) -> list[tuple[int, Traversable]]:
    found = files("pgqrs.store").joinpath("schema", dialect).iterdir()
    return sorted((int(f.name[:4]), f) for f in found if f.name.endswith(".sql"))


VERSION = max(version for version, _ in _migrations("postgres"))
