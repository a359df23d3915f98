"""A supervisor's life: its lease, its consumers, its neighbours, and what becomes of what it held."""

import pytest

from pgqrs.model.states import WorkerStatus
from pgqrs.model.writes import Archive, Write
from tests.store.given import RUNNING, Consumer, columns, dump, identity, ids, release, step, when, wrote

pytestmark = pytest.mark.fast_on("postgres")


def messages(dsn):
    return columns(dsn, "pgqrs_messages", "id, consumer_worker_id, read_ct, dead_reason")


def test_a_supervisor_has_a_consumer_on_each_queue(store, clock):
    queues = {name: store.ensure_queue(name) for name in ("a", "b", "c")}
    _, consumers = store.register_supervisor(identity("sup", pid=12), queues, 15)
    assert list(consumers) == ["a", "b", "c"]
    shown = store.workers()
    assert [(w.id, w.name, w.queue_name, w.pid, w.host) for w in shown] == [
        (consumers[q], f"sup:{q}", q, 12, "here") for q in queues
    ]
    assert {w.status for w in shown} == {WorkerStatus.Polling}
    assert {when(w.lease_until) for w in shown} == {clock.at(15)}


def test_a_renewed_lease_holds_from_now_on_and_its_consumers_beat(store, consumer, clock):
    clock.advance(14)
    assert store.renew_lease(consumer.supervisor_id, 15)
    [shown] = store.workers()
    assert (when(shown.lease_until), when(shown.heartbeat_at)) == (clock.at(15), clock.at())
    clock.advance(14)
    assert store.renew_lease(consumer.supervisor_id, 15)


@pytest.mark.parametrize("late_s", [0, 0.001, 3600])
def test_a_lease_that_ran_out_cannot_be_renewed(late_s, store, consumer, clock, dsn):
    clock.advance(15 + late_s)
    before = dump(dsn)
    assert not store.renew_lease(consumer.supervisor_id, 15)
    assert dump(dsn) == before


def test_a_lease_that_somebody_ended_cannot_be_renewed(store, consumer):
    store.expire_lease(consumer.supervisor_id)
    assert not store.renew_lease(consumer.supervisor_id, 15)


def test_a_supervisor_that_nobody_knows_cannot_renew(store):
    assert not store.renew_lease(999, 15)


def test_nothing_is_recovered_while_the_lease_holds(store, queue, consumer, clock, dsn):
    store.enqueue(queue, [b"1"])
    consumer.claim()
    clock.advance(14.999)
    before = dump(dsn)
    assert store.recover(5) == 0
    assert dump(dsn) == before


def test_runs_come_back_uncharged_when_the_lease_ran_out(flow, clock, dsn):
    claim = flow.begun()
    wrote(flow.store, step(claim))
    clock.advance(15)
    assert flow.store.recover(5) == 1
    assert messages(dsn) == [(claim.message_id, None, 0, None)]
    again = Consumer(flow.store, flow.workflow.queue_id, "heir").claim()[0]
    assert (again.read_ct, again.status, [s.name for s in again.steps]) == (1, RUNNING, ["a"])
    assert again.claim.claim_no == claim.claim_no + 1


def test_a_run_comes_back_however_often_its_supervisor_dies(flow, clock):
    flow.trigger()
    for n in range(8):
        heir = Consumer(flow.store, flow.workflow.queue_id, f"heir {n}")
        assert len(heir.claim(read_ct_max=2)) == 1
        clock.advance(16)
        assert flow.store.recover(2) == 1


def handler_began(claim):
    return Write(claim, delivers=True)


def test_a_plain_messages_delivery_is_charged_where_its_handler_had_begun(store, queue, consumer, clock, dsn):
    began, waited = store.enqueue(queue, [b"1"] * 2)
    claims = [c.claim for c in consumer.claim()]
    wrote(store, handler_began(claims[0]))
    clock.advance(15)
    assert store.recover(5) == 2
    assert messages(dsn) == [(began, None, 1, None), (waited, None, 0, None)]


def test_a_message_whose_handler_never_began_outlives_any_number_of_supervisors(store, queue, clock):
    [number] = store.enqueue(queue, [b"1"])
    for n in range(8):
        assert ids(Consumer(store, queue, f"dead {n}").claim(read_ct_max=2)) == [number]
        clock.advance(16)
        assert store.recover(2) == 1
    assert store.dead() == []


def test_what_began_under_an_earlier_claim_is_not_charged_to_the_next(store, queue, consumer, clock, dsn):
    [number] = store.enqueue(queue, [b"1"])
    claim = consumer.claim_one()
    store.turn([handler_began(claim), release(claim, refund=False)])
    wrote(store, handler_began(consumer.claim_one()))
    clock.advance(15)
    store.recover(5)
    heir = Consumer(store, queue, "heir")
    heir.claim()
    clock.advance(15)
    store.recover(5)
    assert messages(dsn) == [(number, None, 2, None)]


def test_a_handler_that_is_not_ours_is_not_noted(store, queue, consumer, other, clock, dsn):
    [number] = store.enqueue(queue, [b"1"])
    late = consumer.claim_one()
    store.expire_lease(consumer.supervisor_id)
    store.recover(5)
    other.claim()
    assert not wrote(store, handler_began(late)).applied
    store.expire_lease(other.supervisor_id)
    store.recover(5)
    assert messages(dsn) == [(number, None, 0, None)]


def test_a_handler_that_begins_and_ends_within_a_turn_is_archived(store, queue, consumer, dsn):
    [number] = store.enqueue(queue, [b"1"])
    claim = consumer.claim_one()
    turn = store.turn([handler_began(claim), Write(claim, message=Archive())])
    assert [o.applied for o in turn.outcomes] == [True, True]
    assert store.message(number).archived_at is not None


def test_a_plain_message_whose_deliveries_are_used_up_is_buried(store, queue, consumer, clock, dsn):
    [number] = store.enqueue(queue, [b"1"])
    for _ in range(2):
        wrote(store, release(consumer.claim_one(), refund=False))
    wrote(store, handler_began(consumer.claim_one()))
    clock.advance(15)
    assert store.recover(3) == 1
    assert messages(dsn) == [(number, consumer.id, 3, "its supervisor died with it")]
    [(queue_name, dead)] = store.dead()
    assert (queue_name, dead.id, when(dead.archived_at)) == ("tasks", number, clock.at())


def test_recovering_takes_only_what_was_held(store, queue, consumer, other, clock, dsn):
    done, held, theirs, waiting = store.enqueue(queue, [b"1"] * 4)
    claims = [c.claim for c in consumer.claim(2)]
    other.claim(1)
    from tests.store.given import finish

    store.turn([finish(claims[0]), handler_began(claims[1])])
    store.expire_lease(consumer.supervisor_id)
    assert store.recover(5) == 1
    assert messages(dsn) == [
        (done, consumer.id, 1, None),
        (held, None, 1, None),
        (theirs, other.id, 1, None),
        (waiting, None, 0, None),
    ]


def test_what_came_back_keeps_its_place(store, queue, consumer, other):
    numbers = store.enqueue(queue, [b"1"] * 5)
    consumer.claim(2)
    other.claim(1)
    store.expire_lease(consumer.supervisor_id)
    store.recover(5)
    assert ids(other.claim()) == [*numbers[:2], *numbers[3:]]


def test_a_recovered_supervisor_is_gone_and_its_consumers_have_stopped(store, consumer, clock):
    clock.advance(15)
    store.recover(5)
    assert store.recover(5) == 0
    assert store.watched(consumer.identity) == ([], False)
    assert store.workers() == []
    [stopped] = store.workers(stopped=True)
    assert (stopped.status, stopped.held) == (WorkerStatus.Stopped, 0)


def test_several_dead_supervisors_are_recovered_at_once(store, queue, clock):
    store.enqueue(queue, [b"1"] * 6)
    for n in range(3):
        Consumer(store, queue, f"dead {n}").claim(2)
    clock.advance(15)
    living = Consumer(store, queue, "living")
    assert store.recover(5) == 6
    assert len(living.claim()) == 6


def test_retiring_gives_back_and_signs_off(flow, clock, dsn):
    claim = flow.begun()
    assert flow.store.retire(flow.consumer.supervisor_id, 5) == 1
    assert messages(dsn) == [(claim.message_id, None, 0, None)]
    assert flow.store.workers() == []
    assert not flow.store.renew_lease(flow.consumer.supervisor_id, 15)


def test_retiring_with_empty_hands_is_fine_and_so_is_twice(store, consumer):
    assert store.retire(consumer.supervisor_id, 5) == 0
    assert store.retire(consumer.supervisor_id, 5) == 0


def test_neighbours_are_those_of_this_host_boot_and_namespace(store, queue):
    here = Consumer(store, queue, "a", pid=1)
    beside = Consumer(store, queue, "b", pid=2)
    for name, place in {
        "c": {"host": "there"},
        "d": {"boot_id": "before"},
        "e": {"pid_ns": "container"},
    }.items():
        Consumer(store, queue, name, **place)
    assert sorted(store.watched(here.identity)[0]) == [
        (here.supervisor_id, 1, 99),
        (beside.supervisor_id, 2, 99),
    ]


def test_a_workers_listing_says_what_each_holds(store, queue, consumer, other):
    store.enqueue(queue, [b"1"] * 5)
    consumer.claim(3)
    other.claim(1)
    assert [w.held for w in store.workers()] == [3, 1]


# A claim that comes late: the supervisor was stopped, or the turn was slow, and nobody would ever take back what it took.


def recovered(consumer, clock):
    clock.advance(15)
    consumer.store.recover(5)


def retired(consumer, clock):
    consumer.store.retire(consumer.supervisor_id, 5)


def expired(consumer, clock):
    clock.advance(15)


@pytest.mark.parametrize("end", [recovered, retired, expired], ids=lambda f: f.__name__)
def test_a_supervisor_without_a_lease_claims_nothing(end, store, queue, consumer, clock, dsn):
    numbers = store.enqueue(queue, [b"1"] * 3)
    end(consumer, clock)
    before = dump(dsn)
    assert consumer.claim() == []
    assert dump(dsn) == before
    assert ids(Consumer(store, queue, "heir").claim()) == numbers


def test_in_one_turn_only_those_with_a_lease_claim(store, queue, consumer, other):
    store.enqueue(queue, [b"1"] * 3)
    store.expire_lease(consumer.supervisor_id)
    taken = store.turn((), [consumer.wanted(), other.wanted()]).taken
    assert [len(t.messages) for t in taken] == [0, 3]
