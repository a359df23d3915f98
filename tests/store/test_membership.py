"""A supervisor's registrations: what it takes back when it joins or looks around, and what it finds to be no longer its own."""

from typing import Any

import pytest

from pgqrs import errors
from pgqrs.store import consuming
from supervisors.core.events import LookAround
from supervisors.loop import membership
from supervisors.loop.membership import Membership
from tests.store.given import execute

LEASE_S = 15.0


@pytest.fixture
def joined(store: Any, queue: int) -> tuple[Membership, Any]:
    """A supervisor of the queue, and what its registration gave."""
    name = next(q.queue_name for q in store.queues())
    member = Membership(store, {name: queue}, LEASE_S, 5, None, lambda: 100.0)
    return member, member.join()


def claims(store: Any, queue: int, consumer: int, count: int) -> list[Any]:
    store.enqueue(queue, [b"1"] * count)
    from pgqrs.model.turns import Want

    [taken] = store.turn((), [Want(queue, consumer, count, 5)]).taken
    return [m.claim for m in taken.messages]


def test_what_is_ours_is_not_gone_and_what_an_operator_ended_is(store, queue, joined):
    member, registration = joined
    consumer = registration.consumers[queue]
    ours, ended = claims(store, queue, consumer, 2)
    store.cancel(ended.message_id, now=True)
    found = member.look_around(LookAround([ours, ended], [consumer]), False)
    assert list(found.gone) == [ended]
    assert (found.recovered, found.reclaimed, found.brought_back, found.locked) == (0, 0, 0, False)


def test_what_clients_of_0_15_hold_too_long_is_taken_back_if_it_is_wanted(store, queue, joined, dsn, clock):
    member, _ = joined
    name = next(q.queue_name for q in store.queues())
    old = consuming.register(store.database, "of 0.15", queue)
    execute(dsn, f"update pgqrs_workers set client = null where id = {old}")
    store.enqueue(queue, [b"1", b"2"])
    assert len(consuming.dequeue(store.database, old, queue, 2, 0.0, 5)) == 2
    clock.advance(10.0)
    assert member.look_around(LookAround([], []), False).reclaimed == 0
    for patience_s, count in ((60.0, 0), (5.0, 2), (5.0, 0)):
        found = Membership(store, {name: queue}, LEASE_S, 5, patience_s, lambda: 100.0)
        assert found.look_around(LookAround([], []), False).reclaimed == count


def test_the_lease_counts_from_before_it_was_asked_for(joined):
    assert joined[1].began == 100.0


def test_it_joins_again_without_waiting_for_its_own_lease(store, queue, joined):
    member, first = joined
    claims(store, queue, first.consumers[queue], 3)
    again = member.join()
    assert again.id != first.id
    assert again.taken_back.count == 3


def test_a_dead_neighbour_is_taken_over_from_at_once_and_a_living_one_is_not(
    store, queue, joined, monkeypatch
):
    member, _ = joined
    name = next(q.queue_name for q in store.queues())
    other = Membership(store, {name: queue}, LEASE_S, 5, None, lambda: 100.0)
    claims(store, queue, other.join().consumers[queue], 2)
    asked: list[int] = []

    def gone(pid: int, started: object) -> bool:
        asked.append(pid)
        return dead

    monkeypatch.setattr(membership, "is_gone", gone)
    dead = False
    assert member.look_around(LookAround([], []), False).recovered == 0
    dead = True
    assert member.look_around(LookAround([], []), False).recovered == 2
    assert asked, "the neighbour's process was looked for, and nobody else's"


def test_a_database_that_was_replaced_is_refused(store, queue, joined):
    member, _ = joined
    member._queues = {"elsewhere": queue}
    with pytest.raises(errors.SchemaError, match="replaced by another: queue 'elsewhere'"):
        member.join()


@pytest.mark.backends("sqlite", "turso", "s3")  # a server has a clock of its own
def test_what_waits_by_a_clock_that_went_back_is_due_after_the_next_start(store, queue, clock):
    store.enqueue(queue, [b"1"], 0.0)
    clock.advance(-7200)
    name = next(q.queue_name for q in store.queues())
    [(queue_id, workflow_id)] = membership.prepare(store, [("handler", "h", name)])
    assert (queue_id, workflow_id) == (queue, None)
    assert [q.ready for q in store.queues()] == [1]


def test_a_retired_supervisor_gives_back_what_it_held(store, queue, joined):
    member, registration = joined
    claims(store, queue, registration.consumers[queue], 2)
    member.retire()
    assert [q.ready for q in store.queues()] == [2]
