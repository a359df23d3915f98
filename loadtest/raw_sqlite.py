"""The same as raw.py in a SQLite file."""

import sqlite3
import time
from collections.abc import Iterator

BATCH = 100
NOW = "strftime('%Y-%m-%d %H:%M:%f')"


def claim_and_archive(path: str, consumer: int) -> float:
    """Returns the seconds to claim every message of the only queue and to archive it: two
    transactions for each batch.
    """
    began = time.perf_counter()
    file = _opened(path)
    for ids in _claimed(file, consumer):
        file.execute("begin immediate")
        file.executemany(ARCHIVE, ids)
        file.execute("commit")
    file.close()
    return time.perf_counter() - began


def step_writes(path: str, consumer: int) -> float:
    """Returns the seconds to write the rows of runs of three steps, in one transaction for each
    step of a batch.
    """
    began = time.perf_counter()
    file = _opened(path)
    for ids in _claimed(file, consumer):
        file.execute("begin immediate")
        file.executemany(BEGIN, ids)
        for position in range(3):
            file.executemany(STEP, [(f"step{position}", position, *each) for each in ids])
            if position < 2:
                file.execute("commit")
                file.execute("begin immediate")
        file.executemany(END, ids)
        file.executemany(ARCHIVE, ids)
        file.execute("commit")
    file.close()
    return time.perf_counter() - began


def _opened(path: str) -> sqlite3.Connection:
    file = sqlite3.connect(path, isolation_level=None)
    file.execute("pragma journal_mode = wal")
    file.execute("pragma synchronous = full")
    return file


def _claimed(file: sqlite3.Connection, consumer: int) -> Iterator[list[tuple[int]]]:
    while True:
        file.execute("begin immediate")
        ids = file.execute(CLAIM, (consumer, BATCH)).fetchall()
        file.execute("commit")
        if not ids:
            return
        yield ids


CLAIM = f"""
update pgqrs_messages set consumer_worker_id = ?, claim_no = claim_no + 1, read_ct = read_ct + 1, dequeued_at = {NOW}
where id in (
    select id from pgqrs_messages
    where queue_id = (select min(id) from pgqrs_queues) and archived_at is null and consumer_worker_id is null
    order by vt, id limit ?
)
returning id
"""  # noqa: E501
ARCHIVE = f"update pgqrs_messages set archived_at = {NOW} where id = ?"
BEGIN = f"""
insert into pgqrs_workflow_runs (workflow_id, message_id, status, input, created_at, updated_at, started_at, attempt)
select w.id, m.id, 'RUNNING', m.payload, {NOW}, {NOW}, {NOW}, 1
from pgqrs_messages m join pgqrs_workflows w on w.queue_id = m.queue_id where m.id = ?
"""  # noqa: E501
STEP = f"""
insert into pgqrs_workflow_steps (run_id, step_name, status, output, started_at, completed_at, position)
select id, ?, 'SUCCESS', '1', {NOW}, {NOW}, ? from pgqrs_workflow_runs where message_id = ?
"""
END = f"""
update pgqrs_workflow_runs set status = 'SUCCESS', output = '1', completed_at = {NOW}, updated_at = {NOW}
where message_id = ?
"""
