"""Behind 50,000 archived messages, no statement of a supervisor or a library consumer reads a live table from end to end, and a
claim reads no more than it takes. Judged by what is really sent, so that a changed statement is judged too."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

import pgqrs
from pgqrs.config import Config
from pgqrs.store import open_store
from tests.store.explained import Explained, explaining

FLOW = Path(__file__).with_name("explained_flow.py")
ARCHIVED = 50_000
READY = 3_000
HELD_BY_THE_DEAD = 200
# With this lease a supervisor renews it every 2 s, and does everything else that it does by the clock
# as often at least.
LEASE, SUPERVISED_S = "6s", 4.0
# Its entry in the index of what is ready, and the row that is then updated; twice over, for rows found locked or moved.
ROWS_READ_FOR_EACH = 4
# Descents of the few indexes of a message and its heap pages, by the row; and what finding none takes.
BUFFERS_FOR_EACH, BUFFERS_FOR_NONE = 25, 400

FILL = """
insert into pgqrs_messages (queue_id, payload, vt, archived_at, claim_no, read_ct)
select case when n %% 2 = 0 then %(plain)s else %(flow)s end, '{"input": 1}', now() - interval '1 day', now(), 1, 1
from generate_series(1, %(archived)s) n;

insert into pgqrs_workflow_runs (workflow_id, message_id, status, input, output, created_at, updated_at)
select %(workflow)s, id, 'SUCCESS', '1', '1', now(), now() from pgqrs_messages where queue_id = %(flow)s;

insert into pgqrs_workflow_steps (run_id, step_name, status, output, position)
select r.id, s.name, 'SUCCESS', '1', s.position from pgqrs_workflow_runs r, (values ('first', 0), ('second', 1)) s (name, position);

insert into pgqrs_messages (queue_id, payload, vt)
select case when n %% 2 = 0 then %(plain)s else %(flow)s end, case when n %% 2 = 0 then '1' else '{"input": 1}' end::jsonb,
       now() - interval '1 hour'
from generate_series(1, %(ready)s) n;

insert into pgqrs_supervisors (name, host, boot_id, pid_ns, pid, pid_started, started_at, lease_until)
values ('dead', 'elsewhere', 'boot', 'ns', 1, 1, now(), now() - interval '1 minute');

insert into pgqrs_workers (name, queue_id, started_at, heartbeat_at, status, supervisor_id, client)
select 'dead', %(plain)s, now(), now(), 'polling', id, 'supervisor' from pgqrs_supervisors;

insert into pgqrs_messages (queue_id, payload, vt, consumer_worker_id, claim_no, read_ct)
select %(plain)s, '1', now() - interval '1 hour', w.id, 1, 1 from pgqrs_workers w, generate_series(1, %(held)s);
"""


@pytest.fixture(scope="module")
def template(postgres_server):
    name = f"pgqrs_shapes_{os.getpid()}"
    dsn = postgres_server.create_database(name)
    store = open_store(Config(dsn))
    store.install()
    workflow = store.ensure_workflow("flow", "flow")
    ids = {
        "plain": store.ensure_queue("plain"), "flow": workflow.queue_id, "workflow": workflow.id,
        "archived": ARCHIVED, "ready": READY, "held": HELD_BY_THE_DEAD,
    }  # fmt: skip
    store.close()
    with psycopg.connect(dsn, autocommit=True, cursor_factory=psycopg.ClientCursor) as pg:
        pg.execute(FILL, ids)
        pg.execute("vacuum analyze")
    yield name
    postgres_server.drop_database(name)


@pytest.fixture
def crowded(postgres_server, template):
    name = f"{template}_copy"
    yield postgres_server.create_database(name, template)
    postgres_server.drop_database(name)


@contextmanager
def supervised(dsn, file):
    """Its plans are in the file after the block."""
    command = [
        sys.executable,
        "-m",
        "tests.store.explained",
        file,
        "supervise",
        FLOW,
        "--dsn",
        dsn,
        "--workers",
        "1",
        "--lease",
        LEASE,
    ]
    process = subprocess.Popen([*map(str, command), "--quiet"], cwd=Path(__file__).parents[2])
    try:
        yield process
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


def statements_of_a_supervisor(dsn, tmp_path):
    file = tmp_path / "explained.json"
    with supervised(dsn, file) as process:
        deadline = time.monotonic() + 60
        began = None
        while began is None or time.monotonic() < began + SUPERVISED_S or left(dsn):
            assert process.poll() is None, "the supervisor ended"
            assert time.monotonic() < deadline, f"{left(dsn)} messages were left"
            if began is None and left(dsn) < READY:
                began = time.monotonic()
            time.sleep(0.1)
    return [Explained(sql, plan) for sql, plan in json.loads(file.read_text())]


def left(dsn):
    with psycopg.connect(dsn) as pg:
        return pg.execute("select count(*) from pgqrs_messages where archived_at is null").fetchone()[0]


def shown(statements):
    return "\n\n".join(
        f"{each.whole_table_scans} {each.rows_read} rows, {each.buffers} buffers: {each.sql}"
        for each in statements
    )


def assert_no_table_is_read_whole(statements):
    guilty = [each for each in statements if each.whole_table_scans]
    assert not guilty, shown(guilty)


def unbounded(statements):
    """Claims that read more than they should for what they took."""
    return [
        each
        for each in statements
        if each.claims
        and (
            each.rows_read > ROWS_READ_FOR_EACH * (each.rows_returned + 1)
            or each.buffers > BUFFERS_FOR_NONE + BUFFERS_FOR_EACH * each.rows_returned
        )
    ]


@pytest.mark.slow
def test_a_supervisor_reads_no_live_table_whole_and_its_claims_only_what_they_take(crowded, tmp_path):
    statements = statements_of_a_supervisor(crowded, tmp_path)
    # That all of it was seen: the claims, what runs leave, the end of messages, the recovery of the dead one's.
    assert any(each.claims and each.rows_returned for each in statements)
    assert any(each.writes("Insert", "pgqrs_workflow_runs") for each in statements)
    assert any(each.writes("Insert", "pgqrs_workflow_steps") for each in statements)
    assert any(each.writes("Update", "pgqrs_messages") and "archived_at" in each.sql for each in statements)
    assert any(each.writes("Update", "pgqrs_supervisors") for each in statements), "the lease is renewed"
    assert any(each.writes("Delete", "pgqrs_supervisors") for each in statements), "the dead one is forgotten"
    assert_no_table_is_read_whole(statements)
    assert not unbounded(statements), shown(unbounded(statements))


@pytest.mark.slow
def test_a_library_consumer_reads_no_live_table_whole(crowded):
    with explaining() as statements, pgqrs.connect(crowded) as store:
        consumer = store.consumer("plain")
        for _ in range(5):
            taken = consumer.dequeue(20)
            assert len(taken) == 20
            consumer.archive_many([m.id for m in taken[:10]])
            consumer.extend_vt(taken[10].id, 5)
            consumer.release_messages([m.id for m in taken[10:]])
        store.enqueue_many("plain", range(10))
    assert any(each.claims for each in statements)
    assert_no_table_is_read_whole(statements)
    assert not unbounded(statements), shown(unbounded(statements))


@pytest.mark.slow
@pytest.mark.parametrize(
    "index", ["idx_pgqrs_messages_ready", "idx_pgqrs_messages_consumer_worker_id_active"]
)
def test_a_missing_index_is_noticed(index, crowded, tmp_path):
    with psycopg.connect(crowded, autocommit=True) as pg:
        pg.execute(f"drop index {index}")
    statements = statements_of_a_supervisor(crowded, tmp_path)
    assert [each for each in statements if each.whole_table_scans]
    if index == "idx_pgqrs_messages_ready":
        assert unbounded(statements), "without the scan it would read too much all the same"
