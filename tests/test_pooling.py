"""The stores of a process share their connections to a server, and none of them costs it anything for long."""

import gc
import threading
import weakref
from collections.abc import Callable

import psycopg
import pytest

import pgqrs
from pgqrs.store.calls import Call, Left, interruptible
from pgqrs.store.postgresql import pooling


def connections(dsn: str) -> int:
    with psycopg.connect(dsn) as connection:
        row = connection.execute(
            "select count(*) from pg_stat_activity where application_name = 'pgqrs' and datname = current_database()"
        ).fetchone()
    assert row is not None
    return int(row[0])


def eventually(holds: Callable[[], bool]) -> None:
    for _ in range(200):
        if holds():
            return
        threading.Event().wait(0.02)
    pytest.fail("not within 4 s")


def test_a_hundred_stores_take_no_more_connections_than_one(postgres_dsn: str) -> None:
    with pgqrs.connect(postgres_dsn) as first:
        first.install()
        stores = [pgqrs.connect(postgres_dsn).open() for _ in range(100)]
        for store in stores:
            store.enqueue("tasks", 1)
        assert connections(postgres_dsn) <= 2  # one for transactions, one for hints
        for store in stores:
            store.close()
        first.enqueue("tasks", 1)
    eventually(lambda: connections(postgres_dsn) == 0)


def test_stores_that_connect_otherwise_have_connections_of_their_own(postgres_dsn: str) -> None:
    config = pgqrs.Config(postgres_dsn, max_connections=1)
    with pgqrs.connect(postgres_dsn) as one, pgqrs.connect_with(config) as other:
        one.install()
        one.queues()
        other.queues()
        assert connections(postgres_dsn) == 2


def test_an_abandoned_store_gives_its_connections_back(postgres_dsn: str) -> None:
    store = pgqrs.connect(postgres_dsn).open()
    store.install()
    store.enqueue("tasks", 1)
    gone = weakref.ref(store)
    del store
    gc.collect()
    assert gone() is None
    eventually(lambda: connections(postgres_dsn) == 0)


def test_a_closed_store_is_closed_though_others_go_on(postgres_dsn: str) -> None:
    with pgqrs.connect(postgres_dsn) as one:
        one.install()
        with pgqrs.connect(postgres_dsn) as other:
            other.queue("tasks")
            producer = other.producer("tasks")
        with pytest.raises(pgqrs.PgqrsConnectionError, match="was closed"):
            producer.enqueue(1)
        assert one.enqueue("tasks", 1) == 1


@pytest.mark.slow
def test_an_idle_connection_that_the_server_closed_is_not_handed_out(postgres_dsn: str) -> None:
    with pgqrs.connect(postgres_dsn) as store, psycopg.connect(postgres_dsn, autocommit=True) as other:
        store.install()
        for expected in (1, 2, 3):
            other.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'pgqrs' "
                "and datname = current_database()"
            )
            eventually(lambda: connections(postgres_dsn) == 0)
            assert store.enqueue("tasks", 1) == expected


def test_a_store_may_be_abandoned_in_the_thread_that_opening_another_waits_for() -> None:
    """The garbage collector runs where it likes: here in a thread that the pool starts while it is being opened."""
    abandoned = pooling.lend(None, lambda key: pooling.Connections(key, _Pool(), None, None))  # type: ignore[arg-type]
    opened = threading.Thread(
        target=lambda: pooling.lend(
            ("another",),
            lambda key: pooling.Connections(key, _Pool(lambda: pooling.abandon(abandoned)), None, None),  # type: ignore[arg-type]
        ),
        daemon=True,
    )
    opened.start()
    opened.join(5)
    assert not opened.is_alive()


class _Pool:
    def __init__(self, in_its_thread: Callable[[], None] = lambda: None) -> None:
        self._in_its_thread = in_its_thread

    def open(self) -> None:
        thread = threading.Thread(target=self._in_its_thread, daemon=True)
        thread.start()
        thread.join(5)
        assert not thread.is_alive()


def test_whoever_left_before_he_began_interrupts_nobody_afterwards() -> None:
    """The connection is another call's by then."""
    call, interrupted = Call(), []
    call.leave()
    with pytest.raises(Left), call.made(), interruptible(lambda: interrupted.append(1)):
        pytest.fail("it has left")
    call.interrupt()
    assert interrupted == []
