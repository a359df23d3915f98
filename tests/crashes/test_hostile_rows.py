"""Whatever stands in a column, in whatever table: the supervisor lives, other runs end, and whoever looks gets an answer.

Each value of each column has a row of its own. All of them are there at the same time.
"""

import sqlite3
import subprocess
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
from psycopg import sql

import pgqrs
from pgqrs import errors
from pgqrs.model.states import WorkflowStatus
from pgqrs.store.database import Transaction
from tests.crashes.hostile_rows_flow import PAUSE_S, healthy, victim
from tests.crashes.supervised import connected, supervise
from tests.store.given import identity

pytestmark = pytest.mark.backends("sqlite", "postgres")

SCHEMA = Path(pgqrs.__file__).with_name("store") / "schema" / "sqlite"
FLOW = str(Path(__file__).with_name("hostile_rows_flow.py"))
HEALTHY = 20
BURST_S = 90

NUMBERS: list[object] = [None, 0, -1, 2, 2**31 - 1, 2**31, 2**63 - 1, -(2**63)]
FRACTIONS: list[object] = [None, -1.0, 1e308, float("inf"), float("-inf"), float("nan")]
TEXTS: list[object] = [
    None, "", "0", "RUNNING", "SUCCESS", "RETRY", "[/files]", "\x1b[2J\r\n", "x" * 100_000, "é\u2028😀", "{", "null",
]  # fmt: skip
JSON: list[object] = [
    None, "null", "1", "-1", "[]", "{}", '""', "1e308", '{"input": {}}', '{"input": [[1]], "pgqrs_bound": 7}',
    '{"type": 1, "message": [], "args": {}}', "[" * 900 + "]" * 900, '{"$": ["tuple", 5]}', '"' + "x" * 100_000 + '"',
]  # fmt: skip
TIMES: list[object] = [
    None,
    "infinity",
    "-infinity",
    "0001-01-01",
    "4714-11-24 BC",
    "294276-12-31",
    "9999-12-31",
]
BOOLS: list[object] = [None, True, False]
# A column of SQLite's takes anything.
ANYTHING: list[object] = [
    None, 0, -1, 2, 2**63 - 1, -(2**63), 1.5, float("inf"), "", "x", "RUNNING", b"\xff\x00", "{", "[]", "null", "[/files]",
    "\x1b[2J\r\n", "2024-02-30 25:61:61", "9999-12-31 23:59:59.999", "-4713-01-01", "now", "x" * 100_000,
]  # fmt: skip
OF_TYPE = {
    "integer": NUMBERS, "bigint": NUMBERS, "double precision": FRACTIONS, "real": FRACTIONS, "text": TEXTS,
    "character varying": TEXTS, "jsonb": JSON, "timestamp with time zone": TIMES, "boolean": BOOLS,
    "USER-DEFINED": [s.value for s in WorkflowStatus],
}  # fmt: skip


class Update(NamedTuple):
    table: str
    column: str
    value: object
    where: str


# Which row belongs to run or message %s; the others are copies of one that is there.
OF_A_RUN = {
    "pgqrs_messages": "id = {id}",
    "pgqrs_workflow_runs": "message_id = {id}",
    "pgqrs_workflow_steps": "step_name = 'before' and run_id in (select id from pgqrs_workflow_runs where message_id = {id})",
}
COPIED = {
    "pgqrs_queues": "queue_name", "pgqrs_workers": "name", "pgqrs_workflows": "name", "pgqrs_supervisors": "name",
}  # fmt: skip


class SqliteRows:
    """The tables, past everything that pgqrs sees to. Also of Turso and S3."""

    def __init__(self, store: pgqrs.Store) -> None:
        self._database = store.messages.database
        self._dsn = store.config.dsn

    def columns(self, table: str) -> list[tuple[str, list[object]]]:
        with sqlite3.connect(":memory:") as empty:
            for script in sorted(SCHEMA.glob("*.sql")):
                empty.executescript(script.read_text())
            return [(row[1], ANYTHING) for row in empty.execute(f"pragma table_info({table})")]

    def write(self, updates: Sequence[Update]) -> int:
        """How many the database takes."""
        with self._database.transaction() as tx:
            return sum(self._writes(tx, u) for u in updates)

    def _writes(self, tx: Transaction, update: Update) -> bool:
        try:
            tx.script(
                f"update {update.table} set {update.column} = {_literal(update.value)} where {update.where}"
            )
        except Exception:  # each driver's own
            return False
        return True

    def copy(self, table: str, name_column: str, names: Sequence[str]) -> None:
        others = ", ".join(c for c, _ in self.columns(table) if c not in ("id", name_column))
        with self._database.transaction() as tx:
            for name in names:
                tx.script(
                    f"insert into {table} ({name_column}, {others}) select '{name}', {others} from {table} order by id limit 1"
                )


def _literal(value: object) -> str:
    if isinstance(value, float):
        return "9e999" if value == float("inf") else repr(value)
    if isinstance(value, bytes):
        return f"x'{value.hex()}'"
    return (
        "null"
        if value is None
        else "'" + value.replace("'", "''") + "'"
        if isinstance(value, str)
        else str(value)
    )


class PostgresRows:
    def __init__(self, store: pgqrs.Store) -> None:
        self._dsn = store.config.dsn

    def columns(self, table: str) -> list[tuple[str, list[object]]]:
        with psycopg.connect(self._dsn, autocommit=True) as pg:
            found = pg.execute(
                "select column_name, data_type from information_schema.columns where table_name = %s order by 1",
                (table,),
            ).fetchall()
        return [(name, OF_TYPE[kind]) for name, kind in found]

    def write(self, updates: Sequence[Update]) -> int:
        with psycopg.connect(self._dsn, autocommit=True) as pg:
            return sum(self._writes(pg, u) for u in updates)

    def _writes(self, pg: "psycopg.Connection[Any]", update: Update) -> bool:
        statement = sql.SQL("update {} set {} = {} where " + update.where).format(  # type: ignore[arg-type]
            sql.Identifier(update.table), sql.Identifier(update.column), sql.Literal(update.value)
        )
        try:
            return pg.execute(statement).rowcount == 1
        except psycopg.Error:
            return False

    def copy(self, table: str, name_column: str, names: Sequence[str]) -> None:
        others = ", ".join(f'"{c}"' for c, _ in self.columns(table) if c not in ("id", name_column))
        insert = f"insert into {table} ({name_column}, {others}) select %s, {others} from {table} order by id limit 1"
        with psycopg.connect(self._dsn, autocommit=True) as pg:
            for name in names:
                pg.execute(insert.encode(), (name,))


def burst(dsn: str, log: Path) -> str:
    with log.open("ab") as out:
        ended = subprocess.run(
            supervise(dsn, "--workers", "2", "--burst", target=FLOW),
            stdout=out,
            stderr=subprocess.STDOUT,
            timeout=BURST_S,
        )
    said = log.read_text(errors="replace")
    assert ended.returncode == 0, said[-3000:]
    assert "Traceback" not in said, said[-6000:]
    return said


def plant(store: pgqrs.Store, table: str, tmp_path: Path) -> tuple[list[int], int]:
    """A hostile value in each column of a row of its own. Their runs or messages, and how many values the database took."""
    rows = PostgresRows(store) if store.config.backend == "postgres" else SqliteRows(store)
    wanted = [(column, value) for column, values in rows.columns(table) if column != "id" for value in values]
    ids: list[int] = []
    if table == "pgqrs_supervisors":
        store.messages.register_supervisor(identity("dead"), {}, 3600)
    if table in OF_A_RUN:
        ids = [h.id for h in store.trigger_many(victim, range(len(wanted)))]
        burst(store.config.dsn, tmp_path / "first.log")  # each to its pause
        places = [OF_A_RUN[table].format(id=i) for i in ids]
    else:
        names = [f"victim-{n}" for n in range(len(wanted))]
        rows.copy(table, COPIED[table], names)
        places = [f"{COPIED[table]} = '{name}'" for name in names]
    updates = [Update(table, column, value, at) for (column, value), at in zip(wanted, places, strict=True)]
    return ids, rows.write(updates)


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("table", [*OF_A_RUN, *COPIED])
def test_a_hostile_row_harms_nobody_else(dsn: str, table: str, tmp_path: Path) -> None:
    with connected(dsn) as store:
        store.install()
        store.trigger(healthy, 1)
        store.enqueue("mail", 1)
        burst(dsn, tmp_path / "made.log")  # the rows of its functions, of a supervisor and of its consumers
        ids, taken = plant(store, table, tmp_path)
        assert taken > 5, "the database refuses nearly all of it, so nothing is tried"
        handles = store.trigger_many(healthy, list(range(HEALTHY)))
        store.enqueue_many("mail", range(HEALTHY))
        time.sleep(PAUSE_S)
        burst(dsn, tmp_path / "beside.log")
        assert [h.result(timeout=1) for h in handles] == [n + 1 for n in range(HEALTHY)]
        looked_at(store, ids)


def looked_at(store: pgqrs.Store, ids: list[int]) -> None:
    """Whoever looks sees the row, or is told by an error of ours what is wrong with it."""
    wrong = []
    for look in (
        store.runs,
        store.queues,
        store.consumers,
        store.dead,
        *(partial(look_at, store, i) for i in ids),
    ):
        try:
            look()
        except errors.PgqrsError:
            continue
        except Exception as e:
            wrong.append(f"{look}: {e!r}")
    assert not wrong, "\n".join(wrong)


def look_at(store: pgqrs.Store, run_id: int) -> None:
    handle = store.run(run_id)
    handle.record()
    handle.steps()
