"""The tables of pgqrs 0.15 are there, column for column, so that its package works on a database that we made."""

import pytest

from tests.store.given import execute

# (name, PostgreSQL's type, null allowed, has a default), of 0.15.3 as published.
LAYOUT = {
    "pgqrs_queues": [
        ("id", "bigint", False, True), ("queue_name", "character varying", False, False),
        ("created_at", "timestamp with time zone", False, True),
    ],
    "pgqrs_workers": [
        ("id", "bigint", False, False), ("name", "text", False, False), ("queue_id", "bigint", True, False),
        ("started_at", "timestamp with time zone", True, True), ("heartbeat_at", "timestamp with time zone", True, True),
        ("shutdown_at", "timestamp with time zone", True, False), ("status", "worker_status", False, True),
    ],
    "pgqrs_messages": [
        ("id", "bigint", False, True), ("queue_id", "bigint", False, False), ("payload", "jsonb", False, False),
        ("vt", "timestamp with time zone", True, True), ("enqueued_at", "timestamp with time zone", True, True),
        ("read_ct", "integer", True, True), ("dequeued_at", "timestamp with time zone", True, False),
        ("producer_worker_id", "bigint", True, False), ("consumer_worker_id", "bigint", True, False),
        ("archived_at", "timestamp with time zone", True, False),
    ],
    "pgqrs_workflows": [
        ("id", "bigint", False, True), ("name", "character varying", False, False), ("queue_id", "bigint", False, False),
        ("created_at", "timestamp with time zone", False, True),
    ],
    "pgqrs_workflow_runs": [
        ("id", "bigint", False, True), ("workflow_id", "bigint", False, False), ("message_id", "bigint", False, False),
        ("status", "pgqrs_workflow_status", False, False), ("input", "jsonb", True, False), ("output", "jsonb", True, False),
        ("error", "jsonb", True, False), ("created_at", "timestamp with time zone", False, True),
        ("updated_at", "timestamp with time zone", False, True), ("started_at", "timestamp with time zone", True, False),
        ("paused_at", "timestamp with time zone", True, False), ("completed_at", "timestamp with time zone", True, False),
        ("worker_id", "bigint", True, False),
    ],
    "pgqrs_workflow_steps": [
        ("id", "bigint", False, True), ("run_id", "bigint", False, False), ("step_name", "character varying", False, False),
        ("status", "pgqrs_workflow_status", False, False), ("input", "jsonb", True, False), ("output", "jsonb", True, False),
        ("error", "jsonb", True, False), ("created_at", "timestamp with time zone", False, True),
        ("updated_at", "timestamp with time zone", False, True), ("started_at", "timestamp with time zone", True, False),
        ("completed_at", "timestamp with time zone", True, False), ("retry_count", "integer", False, True),
        ("retry_at", "timestamp with time zone", True, False), ("last_retry_at", "timestamp with time zone", True, False),
    ],
}  # fmt: skip
ON_SQLITE = {"bigint": "INTEGER", "integer": "INTEGER"}  # all else is text


def found(dsn, table):
    """(name, type, null allowed, has a default), in the order of the table."""
    if not dsn.startswith("postgres"):
        return [
            (name, kind.upper(), not (notnull or pk), default is not None)
            for _, name, kind, notnull, default, pk in execute(dsn, f"pragma table_info({table})")
        ]
    return [
        (name, udt if kind == "USER-DEFINED" else kind, null == "YES", default is not None)
        for name, kind, udt, null, default in execute(
            dsn,
            "select column_name, data_type, udt_name, is_nullable, column_default from information_schema.columns "
            "where table_name = ? and table_schema = 'public' order by ordinal_position",
            table,
        )
    ]


def test_the_columns_of_0_15_stand_first_and_are_as_they_were(store, dsn):
    for table, layout in LAYOUT.items():
        wanted = layout
        if not dsn.startswith("postgres"):
            wanted = [
                (name, ON_SQLITE.get(kind, "TEXT"), null, default and name != "id")
                for name, kind, null, default in layout
            ]
        assert found(dsn, table)[: len(wanted)] == wanted, table


def test_our_own_columns_come_behind_and_need_no_value(store, dsn):
    for table, layout in LAYOUT.items():
        own = found(dsn, table)[len(layout) :]
        assert all(null or default for _, _, null, default in own), table


def test_the_states_of_0_15_are_known_to_the_database(store, dsn):
    if not dsn.startswith("postgres"):
        return
    labels = "select enumlabel from pg_enum where enumtypid = ?::regtype order by enumsortorder"
    runs = [name for (name,) in execute(dsn, labels, "pgqrs_workflow_status")]
    workers = [name for (name,) in execute(dsn, labels, "worker_status")]
    assert runs[:5] == ["QUEUED", "RUNNING", "SUCCESS", "ERROR", "PAUSED"]
    assert runs[5:] == ["CANCELLING", "CANCELLED"]
    assert workers == ["ready", "polling", "suspended", "interrupted", "stopped"]


def test_names_and_runs_are_unique_as_in_0_15(store, flow, dsn):
    flow.begun()
    for statement in (
        "insert into pgqrs_queues (queue_name) values ('flow')",
        "insert into pgqrs_workflows (name, queue_id) values ('flow', 1)",
        "insert into pgqrs_workflow_runs (workflow_id, message_id, status) values (1, 1, 'QUEUED')",
    ):
        with pytest.raises(Exception, match=r"(?i)unique"):
            execute(dsn, statement)


def test_0_15_finds_its_own_migrations_done(store, dsn):
    if not dsn.startswith("postgres"):
        return
    done = execute(dsn, "select version, success, length(checksum) from _sqlx_migrations order by version")
    assert done == [(v, True, 48) for v in (1, 2, 3, 4, 6)]
