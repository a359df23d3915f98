"""Behind a connection pooler each transaction may meet another server connection, which other
clients use as well: nothing depends on what was said before, and nothing stays behind."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

import pgqrs
from pgqrs.config import Config
from pgqrs.store import open_store
from pgqrs.store.postgresql.database import PostgresDatabase
from supervisors.loop.listening import POLL_POOLED_S, Listener
from tests.pooler import Pooler, pgbouncer, pgbouncer_before

POOLERS = ["ours", "ours, with the servers' ids"]
if pgbouncer():
    POOLERS += ["pgbouncer by transaction", "pgbouncer by session"]
STATE = """
select 'setting', name, setting from pg_settings where source = 'session'
union all select 'statement', name, statement from pg_prepared_statements
union all select 'listens', channel, '' from pg_listening_channels() channel
"""
FLOW = """
import pgqrs

@pgqrs.step
def double(n: int) -> int:
    return 2 * n

@pgqrs.workflow
def doubled(n: int) -> int:
    return double(double(n))
"""


@pytest.fixture(params=POOLERS)
def pooled_dsn(request: pytest.FixtureRequest, postgres_dsn: str) -> Iterator[str]:
    """Leads through a pooler to an installed database."""
    with pgqrs.connect(postgres_dsn) as store:
        store.install()
    if request.param.startswith("ours"):
        with Pooler(postgres_dsn, shows_servers="ids" in request.param) as pooler:
            yield pooler.dsn
    else:
        with pgbouncer_before(postgres_dsn, request.param.rpartition(" ")[2]) as dsn:
            yield dsn


@pytest.fixture(params=[False, True], ids=["with ids of its own", "with the servers' ids"])
def pooler(request: pytest.FixtureRequest, postgres_dsn: str) -> Iterator[Pooler]:
    with pgqrs.connect(postgres_dsn) as store:
        store.install()
    with Pooler(postgres_dsn, shows_servers=request.param) as made:
        yield made


@pytest.mark.slow
def test_everything_a_client_does_works(pooled_dsn: str) -> None:
    for _ in range(3):
        with pgqrs.connect(pooled_dsn) as store:
            assert store.install() == 0
            queue = f"tasks {time.monotonic_ns()}"
            ids = [store.enqueue(queue, n) for n in range(20)]
            ids += store.enqueue_many(queue, range(300))
            consumer = store.consumer(queue)
            taken = [m for _ in range(8) for m in consumer.dequeue(40)]
            assert [m.id for m in taken] == ids
            consumer.archive_many(ids)
            assert {q.queue_name: q.archived for q in store.queues()}[queue] == 320


@pytest.mark.slow
def test_threads_share_few_server_connections(pooled_dsn: str) -> None:
    with pgqrs.connect(pooled_dsn) as store:
        failures: list[BaseException] = []

        def work(n: int) -> None:
            try:
                for i in range(30):
                    store.enqueue(f"q{n}", i)
                consumer = store.consumer(f"q{n}")
                taken = [m.payload for _ in range(10) for m in consumer.dequeue(5)]
                assert taken == list(range(30))
            except BaseException as e:
                failures.append(e)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert not failures


@pytest.mark.slow
def test_supervisors_and_clients_share_a_pooler(pooled_dsn: str, tmp_path: Path) -> None:
    (tmp_path / "flow.py").write_text(FLOW)
    command = [sys.executable, "-m", "pgqrs", "supervise", "flow.py", "--dsn", pooled_dsn, "--workers", "1"]
    processes = [
        subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    try:
        with pgqrs.connect(pooled_dsn) as store:
            handles = [store.trigger("doubled", n) for n in range(100)]
            assert [h.result(timeout=60) for h in handles] == [4 * n for n in range(100)]
    finally:
        for p in processes:
            p.terminate()
        told = [p.communicate(timeout=30)[0] for p in processes]
    # One supervisor may do all the work before the other has started.
    assert all(p.returncode == 0 or not said for p, said in zip(processes, told, strict=True)), told
    assert not [text for text in told if "away" in text or "Traceback" in text], told


def test_a_callers_transaction_is_used_through_a_pooler(pooled_dsn: str) -> None:
    with pgqrs.connect(pooled_dsn) as store, psycopg.connect(pooled_dsn, prepare_threshold=None) as own:
        for n in range(10):
            with own.transaction():
                store.using(own).enqueue("tasks", n)
        assert [m.payload for m in store.consumer("tasks").dequeue(20)] == list(range(10))


def test_nothing_stays_on_the_server_connections(pooler: Pooler) -> None:
    """Neither settings nor, once the pooler is noticed, prepared statements; what was prepared
    before is named by its text."""
    with pgqrs.connect_with(Config(pooler.dsn, max_connections=2)) as store:
        for n in range(20):
            store.enqueue("tasks", n)
        store.enqueue_many("tasks", range(200))
        store.consumer("tasks").dequeue(10)
        supervising = open_store(store.config, steady_plans=True)
        supervising.verify()
        supervising.ensure_queue("more")
        supervising.close()
        Listener(store.config).close()
    left = [row for rows in pooler.ask(STATE) for row in rows]
    assert not [row for row in left if row[0] != "statement"]
    if not pooler.shows_servers:
        assert not left
    assert pooler.changed_hands > 10


def test_what_another_client_left_on_a_server_connection_changes_nothing(pooler: Pooler) -> None:
    left = (
        "set search_path to nowhere; set datestyle to 'German'; set timezone to 'Asia/Kolkata'; set array_nulls to off; "
        "set default_transaction_isolation to serializable; "
        "prepare pgqrs_0 as select 1; prepare pgqrs_1 as select 2"
    )
    pooler.ask(left)
    with pgqrs.connect(pooler.dsn) as store:
        ids = [store.enqueue("tasks", n) for n in range(10)] + store.enqueue_many("tasks", range(200))
        taken = [m for _ in range(5) for m in store.consumer("tasks").dequeue(50)]
        assert [m.id for m in taken] == ids
        assert {m.vt[-6:] for m in taken} == {"+00:00"}


def test_clients_that_prepare_alike_never_run_each_others_statements(pooler: Pooler) -> None:
    """Also where they insist on preparing."""
    config = Config(pooler.dsn, max_connections=1)
    config.prepared_statements = True
    with pgqrs.connect_with(config) as a, pgqrs.connect(pooler.dsn) as b:
        for n in range(12):
            a.enqueue("tasks", n)
            b.queues()
            b.enqueue("tasks", n)
            a.queues()
        assert a.queues()[0].ready == 24


def prepared(dsn: str, prepares: bool | None) -> bool:
    """Whether a statement that came often is prepared on its connection."""
    config = Config(dsn, max_connections=1)
    config.prepared_statements = prepares
    store = open_store(config)
    assert isinstance(store.database, PostgresDatabase)
    for _ in range(5):
        store.queues()
    with store.database._connection() as connection:
        names = connection.prepared._names
    store.close()
    return bool(names)


def test_statements_are_prepared_unless_there_is_a_pooler_or_nobody_wants_it(
    pooler: Pooler, postgres_dsn: str
) -> None:
    assert prepared(postgres_dsn, None)
    assert not prepared(postgres_dsn, False)
    assert not prepared(pooler.dsn, None)
    assert not prepared(pooler.dsn, False)


def test_a_listener_polls_where_it_would_listen_through_a_pooler(pooler: Pooler) -> None:
    listener = Listener(Config(pooler.dsn))
    assert (listener.fileno(), listener.interval_s) == (None, POLL_POOLED_S)
    assert listener.look() is None
    assert "PGQRS_LISTEN_DSN" in (listener.caution() or "")
    listener.mend()
    assert listener.fileno() is None
    listener.close()
    assert not [row for rows in pooler.ask(STATE) for row in rows if row[0] == "listens"]


def test_a_listener_may_have_a_connection_of_its_own(postgres_dsn: str) -> None:
    with pgqrs.connect(postgres_dsn) as store, Pooler(postgres_dsn) as pooler:
        store.install()
        config = Config(pooler.dsn)
        config.listen_dsn = postgres_dsn
        listener = Listener(config)
        assert listener.interval_s is None
        with pgqrs.connect(pooler.dsn) as client:
            client.enqueue("tasks", 1)
        deadline, heard = time.monotonic() + 5, ()
        while not heard and time.monotonic() < deadline:
            heard = listener.look()
        assert heard == ("tasks",)
        listener.close()


def test_a_listen_dsn_that_is_pooled_itself_is_not_listened_on(postgres_dsn: str) -> None:
    with Pooler(postgres_dsn) as pooler:
        config = Config(postgres_dsn)
        config.listen_dsn = pooler.dsn
        listener = Listener(config)
        assert listener.interval_s == POLL_POOLED_S
        listener.close()


def test_the_environment_names_where_to_listen_and_whether_to_prepare(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PGQRS_LISTEN_DSN", "postgresql:///direct")
    monkeypatch.setenv("PGQRS_PREPARED_STATEMENTS", "off")
    config = Config.load("postgresql:///pooled")
    assert (config.listen_dsn, config.prepared_statements) == ("postgresql:///direct", False)
    with pytest.raises(pgqrs.ConfigError, match="prepared_statements is True, False or None"):
        config.prepared_statements = "no"  # type: ignore[assignment]
