"""Has every statement that psycopg is given explained as it is sent: with its own parameters, in its own transaction, on its own
connection with whatever is set there. Run as a program it does so in a supervisor, and writes what it saw into a file.

    python -m tests.store.explained FILE supervise TARGET …
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from msgspec import Struct
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from pgqrs.store.postgresql.prepared import Prepared
from pgqrs.store.sql import Statement

LIVE = ("pgqrs_messages", "pgqrs_workflow_runs", "pgqrs_workflow_steps")
VERBS = ("select", "with", "insert", "update", "delete")


class Explained(Struct, frozen=True):
    """A statement as it was sent, and its plan as it was carried out."""

    sql: str
    plan: dict[str, Any]

    @property
    def nodes(self) -> list[dict[str, Any]]:
        return list(_nodes(self.plan))

    def writes(self, operation: str, table: str) -> bool:
        return any(n.get("Operation") == operation and n.get("Relation Name") == table for n in self.nodes)

    @property
    def claims(self) -> bool:
        takes = "skip locked" in self.sql and "claim_no = case" in self.sql  # as recovery does not
        return self.writes("Update", "pgqrs_messages") and takes

    @property
    def whole_table_scans(self) -> list[str]:
        return [
            n["Relation Name"]
            for n in self.nodes
            if n["Node Type"] == "Seq Scan" and n.get("Relation Name") in LIVE and n["Actual Loops"]
        ]

    @property
    def rows_read(self) -> int:
        """By scans of live tables, those that a filter threw away included."""
        return sum(
            (
                n["Actual Rows"]
                + n.get("Rows Removed by Filter", 0)
                + n.get("Rows Removed by Index Recheck", 0)
            )
            * n["Actual Loops"]
            for n in self.nodes
            if n.get("Relation Name") in LIVE and "Scan" in n["Node Type"]
        )

    @property
    def rows_returned(self) -> int:
        return int(self.plan["Actual Rows"])

    @property
    def buffers(self) -> int:
        return int(self.plan["Shared Hit Blocks"] + self.plan["Shared Read Blocks"])


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", []):
        yield from _nodes(child)


@contextmanager
def explaining() -> Iterator[list[Explained]]:
    """What is sent in the block, by any connection of this process, in the order in which it is sent."""
    seen: list[Explained] = []
    sent = psycopg.Cursor.execute

    def execute(self: Any, query: Any, params: Any = None, **options: Any) -> Any:
        text = query.decode() if isinstance(query, bytes) else query
        ours = (
            isinstance(text, str)
            and "set_config" not in text
            and text.lstrip().lower().startswith(VERBS)
            and "pgqrs_" in text
        )
        if ours and (found := _explain(self.connection, sent, text, params)):
            seen.append(found)
        return sent(self, query, params, **options)

    def run(self: Any, statement: Statement, params: dict[str, Any]) -> list[Any]:
        cursor = self._connection.cursor(row_factory=tuple_row)
        cursor.execute(statement.encoded, params)
        return cursor.fetchall() if cursor.description else []

    def run_alone(self: Any, statement: Statement, params: dict[str, Any], writes: bool = True) -> list[Any]:
        self.begin(writes)
        try:
            rows = run(self, statement, params)
            self.commit()
            return rows
        except psycopg.Error:
            self.rollback()
            raise

    prepared, alone = Prepared.run, Prepared.run_alone
    psycopg.Cursor.execute = execute  # type: ignore[method-assign]
    Prepared.run, Prepared.run_alone = run, run_alone  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        psycopg.Cursor.execute = sent  # type: ignore[method-assign]
        Prepared.run, Prepared.run_alone = prepared, alone  # type: ignore[method-assign]


def _explain(connection: Any, sent: Any, text: str, params: Any) -> Explained | None:
    """It is carried out and undone. None where the server refuses it: it will be refused again, and the caller sees that."""
    alone = connection.info.transaction_status == TransactionStatus.IDLE
    cursor = connection.cursor(row_factory=tuple_row)
    sent(cursor, "begin" if alone else "savepoint explained")
    try:
        sent(cursor, f"explain (analyze, buffers, format json) {text}", params, prepare=False)
        told = cursor.fetchone()[0]
        plans = told if isinstance(told, list) else json.loads(told)
        return Explained(text, plans[0]["Plan"])
    except psycopg.Error:
        return None
    finally:
        sent(cursor, "rollback" if alone else "rollback to savepoint explained")


if __name__ == "__main__":
    from pgqrs.cli import main

    file, *sys.argv[1:] = sys.argv[1:]
    with explaining() as statements:
        try:
            main()
        finally:
            with open(file, "w") as to:
                json.dump([[each.sql, each.plan] for each in statements], to)
