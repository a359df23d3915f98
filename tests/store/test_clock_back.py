"""A clock that goes back: what waited by the old time is due by the new one."""

from datetime import UTC, datetime, timedelta

import pytest

from pgqrs.config import Config
from pgqrs.store import open_store

HOUR = timedelta(hours=1)
THEN = datetime(2026, 5, 1, 12, tzinfo=UTC)


class Clock:
    def __init__(self):
        self.now = THEN

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(sqlite_dsn, clock):
    store = open_store(Config(sqlite_dsn), clock)
    store.install()
    yield store
    store.close()


def due_in(store, clock, message_id):
    """Seconds."""
    with store.database.reading() as tx:
        [(vt,)] = tx._connection.execute(
            "select vt from pgqrs_messages where id = ?", (message_id,)
        ).fetchall()
    return (datetime.fromisoformat(vt + "+00:00") - clock.now).total_seconds()


def test_what_was_due_is_due_again_and_what_waited_waits_as_long_as_it_had_to(store, clock):
    queue = store.ensure_queue("q")
    [fresh] = store.enqueue(queue, [b"1"])
    [delayed] = store.enqueue(queue, [b"2"], 600.0)
    clock.now = THEN - HOUR
    assert due_in(store, clock, fresh) == 3600
    assert store.bring_back() == 2
    assert due_in(store, clock, fresh) == 0
    assert due_in(store, clock, delayed) == 600
    clock.now += timedelta(seconds=100)
    assert store.bring_back() == 0
    assert due_in(store, clock, delayed) == 500


def test_without_a_change_of_the_clock_nothing_moves(store, clock):
    queue = store.ensure_queue("q")
    [delayed] = store.enqueue(queue, [b"2"], 600.0)
    clock.now += timedelta(seconds=10)
    assert store.bring_back() == 0
    assert due_in(store, clock, delayed) == 590
