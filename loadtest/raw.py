"""The rate of a database without an engine: the same tables, one connection, batches of 100,
nothing executed in between.
"""

import time
from collections.abc import Iterator
from typing import Any

import psycopg

BATCH = 100


def claim_and_archive(dsn: str, consumer: int, payloads: bool = False) -> float:
    """Returns the seconds to claim every message of the only queue behind a watermark, and to
    archive it: two transactions for each batch.
    """
    began = time.perf_counter()
    with psycopg.connect(dsn) as connection:
        for ids in _claimed(connection, consumer, payloads):
            connection.execute(ARCHIVE, (ids,))
            connection.commit()
    return time.perf_counter() - began


def _claimed(
    connection: psycopg.Connection[Any], consumer: int, payloads: bool = False
) -> Iterator[list[int]]:
    """Yields batches of message ids, each claimed and committed, until no message is left."""
    after_vt, after_id = "-infinity", 0
    claim = CLAIM + (", c.payload::text" if payloads else "")
    while rows := connection.execute(claim.encode(), (after_vt, after_id, BATCH, consumer)).fetchall():
        connection.commit()
        after_id, after_vt = max((row[:2] for row in rows), key=lambda row: (row[1], row[0]))
        yield [row[0] for row in rows]


ARCHIVE = "update pgqrs_messages set archived_at = now() where id = any(%s)"
CLAIM = """
with due as (
    select id as due_id from pgqrs_messages
    where queue_id = (select min(id) from pgqrs_queues) and archived_at is null and consumer_worker_id is null and vt <= now()
      and (vt, id) > (%s::timestamptz, %s)
    order by vt, id limit %s for no key update skip locked
)
update pgqrs_messages c set consumer_worker_id = %s, claim_no = c.claim_no + 1, read_ct = c.read_ct + 1, dequeued_at = now()
from due where c.id = due.due_id
returning c.id, c.vt::text
"""  # noqa: E501


def step_writes(dsn: str, consumer: int, commits: int) -> float:
    """Returns the seconds to write the rows of runs of three steps: run, three steps, end.
    `commits` is the number of transactions for each batch (3 is strict).
    """
    began = time.perf_counter()
    with psycopg.connect(dsn) as connection:
        for ids in _claimed(connection, consumer):
            connection.execute(BEGIN, (ids,))
            for position in range(3):
                connection.execute(STEP, (f"step{position}", position, ids))
                if commits == 3 and position < 2:
                    connection.commit()
            connection.execute(END, (ids,))
            connection.execute(ARCHIVE, (ids,))
            connection.commit()
    return time.perf_counter() - began


BEGIN = """
insert into pgqrs_workflow_runs (workflow_id, message_id, status, input, created_at, updated_at, started_at, attempt)
select w.id, m.id, 'RUNNING', m.payload, now(), now(), now(), 1
from pgqrs_messages m join pgqrs_workflows w on w.queue_id = m.queue_id where m.id = any(%s)
"""  # noqa: E501
STEP = """
insert into pgqrs_workflow_steps (run_id, step_name, status, output, started_at, completed_at, position)
select id, %s, 'SUCCESS', '1', now(), now(), %s from pgqrs_workflow_runs where message_id = any(%s)
"""
END = """
update pgqrs_workflow_runs set status = 'SUCCESS', output = '1', completed_at = now(), updated_at = now()
where message_id = any(%s)
"""


def copy_in(dsn: str, queue_id: int, payloads: list[bytes]) -> float:
    began = time.perf_counter()
    with psycopg.connect(dsn) as connection, connection.cursor() as cursor:
        with cursor.copy("copy pgqrs_messages (queue_id, payload) from stdin") as copy:
            for payload in payloads:
                copy.write_row((queue_id, payload.decode()))
        connection.commit()
    return time.perf_counter() - began


def insert_each(dsn: str, queue_id: int, payloads: list[bytes]) -> float:
    with psycopg.connect(dsn, autocommit=True) as connection:
        began = time.perf_counter()
        for payload in payloads:
            connection.execute(
                "insert into pgqrs_messages (queue_id, payload) values (%s, %s) returning id",
                (queue_id, payload.decode()),
            ).fetchone()
        return time.perf_counter() - began
