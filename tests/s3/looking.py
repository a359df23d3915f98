"""What is in S3, as somebody sees it who has boto3 and sqlite3 and none of our code."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.s3_server import S3Server


def query(server: S3Server, dsn: str, folder: Path, sql: str) -> list[tuple[Any, ...]]:
    path = server.download(dsn, folder / "witness.db")
    with closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as connection:
        assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]
        return connection.execute(sql).fetchall()


def payloads(server: S3Server, dsn: str, folder: Path) -> list[Any]:
    """Of all messages, in the order of their ids."""
    return [p for (p,) in query(server, dsn, folder, "select payload from pgqrs_messages order by id")]
