"""Counters of a private PostgreSQL: statements, bytes of WAL, and flushes of WAL to disk."""

from collections.abc import Callable
from pathlib import Path

import psycopg

from tests.postgres_server import PostgresServer, default_binaries, version_of

# Typical settings of a server of this size. Everything else is PostgreSQL's default, with fsync and
# synchronous_commit on.
SETTINGS = {"shared_buffers": "512MB", "max_wal_size": "4GB"}


def start_server() -> PostgresServer:
    """Starts a durable server. It counts statements if its installation has the module; the one
    from a wheel has no contrib modules.
    """
    counting = {
        "shared_preload_libraries": "pg_stat_statements",
        "pg_stat_statements.max": "20000",
        "pg_stat_statements.track_planning": "off",
    }
    can = has_library(default_binaries(), "pg_stat_statements")
    server = PostgresServer.start(durable=True, settings=SETTINGS | (counting if can else {}))
    if can:
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute("create extension pg_stat_statements")
    return server


def version(server: PostgresServer) -> str:
    return "PostgreSQL " + ".".join(map(str, version_of(server.bindir) or ()))


def has_library(binaries: Path, name: str) -> bool:
    folders = (
        binaries.parent / "lib",
        binaries.parent / "lib" / "postgresql",
    )
    return any((folder / f"{name}.so").exists() for folder in folders)


def counting(server: PostgresServer, dsn: str) -> Callable[[], dict[str, float]]:
    """Starts to count. The returned function gives the counts since then, without those that the
    server cannot report.
    """
    before = _read(server, dsn)
    return lambda: {k: v - before.get(k, 0.0) for k, v in _read(server, dsn).items()}


def _read(server: PostgresServer, dsn: str) -> dict[str, float]:
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        version = connection.info.server_version
        found: dict[str, float] = {}
        if version >= 180000:
            asked = (
                "select (select wal_bytes from pg_stat_wal), sum(fsyncs) from pg_stat_io where object = 'wal'"
            )
        elif version >= 140000:
            asked = "select wal_bytes, wal_sync from pg_stat_wal"
        else:
            asked = None
        if asked and (row := connection.execute(asked.encode()).fetchone()):
            found |= {"WAL bytes": float(row[0]), "fsyncs of WAL": float(row[1])}
        if connection.execute("select 1 from pg_extension where extname = 'pg_stat_statements'").fetchone():
            row = connection.execute(
                "select coalesce(sum(calls), 0) from pg_stat_statements s "
                "join pg_database d on d.oid = s.dbid where d.datname = %s",
                (dsn.rpartition("/")[2],),
            ).fetchone()
            found["statements"] = float(row[0]) if row else 0.0
        return found
