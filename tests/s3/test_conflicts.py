"""Two write one object: one of them wins, the other is told and has written nothing."""

import threading
import time

import pytest

import pgqrs
from pgqrs.model.turns import Want
from pgqrs.store import open_store
from pgqrs.store.migrations import VERSION
from pgqrs.store.s3 import database as s3
from pgqrs.store.store import Identity
from tests.s3.faults import answer
from tests.s3.looking import payloads


def both_at_once(*calls):
    """Their results or errors, begun together."""
    together = threading.Barrier(len(calls))
    ended = [None] * len(calls)

    def run(n, call):
        together.wait(10)
        try:
            ended[n] = call()
        except pgqrs.PgqrsError as e:
            ended[n] = e

    threads = [threading.Thread(target=run, args=(n, c)) for n, c in enumerate(calls)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    return ended


@pytest.mark.slow
def test_two_writers_race_two_hundred_times_and_no_update_is_lost(opened, s3_server, address, tmp_path):
    """All that a writer was not told of as a conflict is there, all of which he was told is not."""
    writers = [opened(), opened()]
    writers[0].install()
    writers[0].queue("tasks")
    won, lost = [], 0
    for n in range(200):
        names = [f"{n} {w}" for w in range(2)]
        ended = both_at_once(
            *[lambda w=w, p=p: w.enqueue("tasks", p) for w, p in zip(writers, names, strict=True)]
        )
        for name, end in zip(names, ended, strict=True):
            if isinstance(end, pgqrs.PgqrsError):
                assert type(end) is pgqrs.ConflictError, end
                assert "conflict" in str(end)
                assert "make it again" in str(end)
                lost += 1
            else:
                won.append(name)
        assert len([e for e in ended if isinstance(e, int)]) >= 1, "somebody wins"
    assert sorted(payloads(s3_server, address, tmp_path)) == sorted(f'"{name}"' for name in won)
    assert lost > 20, "they hardly met"
    assert len(won) + lost == 400


@pytest.mark.slow
def test_the_first_write_of_two_who_found_nothing(opened, s3_server, address):
    """`install` makes sure of something, so the one who comes second looks again, and finds it done."""
    for n in range(20):
        a, b = opened(), opened()
        assert sorted(both_at_once(a.install, b.install)) == [0, VERSION]
        a.close(), b.close()
        s3_server.delete(address)
        assert n < 20


@pytest.fixture
def unaware(monkeypatch):
    """From when it is called, no store looks again before it writes."""
    return lambda: monkeypatch.setattr(s3, "FRESH_S", 60.0)


def test_the_loser_goes_on_with_what_the_winner_wrote(store, opened, s3_server, address, tmp_path, unaware):
    other = opened()
    other.enqueue("tasks", "warm")
    time.sleep(0.06)
    store.enqueue("tasks", "first")
    unaware()
    with pytest.raises(pgqrs.ConflictError, match="nothing of this call was written"):
        other.enqueue("tasks", "lost")
    assert other.enqueue("tasks", "second") == 3
    assert payloads(s3_server, address, tmp_path) == ['"warm"', '"first"', '"second"']


def test_a_conflict_leaves_nothing_in_the_local_copy_either(store, opened, unaware):
    other = opened()
    other.enqueue("tasks", "kept")
    time.sleep(0.06)
    store.enqueue("tasks", "theirs")
    unaware()
    with pytest.raises(pgqrs.ConflictError):
        other.get_queues().purge("tasks")
    assert [q.ready for q in other.queues()] == [2]


@pytest.mark.parametrize("status", [409, 412])
def test_an_answer_of_conflict_without_one_is_tried_again(status, store, proxy, s3_server, address, tmp_path):
    """S3 says 409 while another's request is under way, which may then fail."""
    store.queue("tasks")
    proxy.next("PUT", answer(status), answer(status))
    store.enqueue("tasks", 1)
    assert payloads(s3_server, address, tmp_path) == ["1"]


@pytest.mark.parametrize("status", [409, 412])
def test_one_that_does_not_end_is_told_and_bounded(status, store, proxy, s3_server, address, tmp_path):
    store.queue("tasks")
    proxy.always("PUT", answer(status))
    puts = proxy.puts
    with pytest.raises(pgqrs.PgqrsConnectionError, match="could not be written"):
        store.enqueue("tasks", 1)
    assert proxy.puts == puts + 5
    proxy.always("PUT", None)
    assert payloads(s3_server, address, tmp_path) == []
    assert store.enqueue("tasks", 2) == 1


@pytest.mark.parametrize("status", [409, 412])
def test_the_first_write_as_well(status, opened, proxy):
    proxy.next("PUT", answer(status))
    assert opened().install() == VERSION


def test_a_supervisor_makes_its_turn_again(address, opened, s3_server, tmp_path):
    supervising = open_store(pgqrs.Config(address), steady_plans=True)
    supervising.install()
    queue = supervising.ensure_queue("tasks")
    _, consumers = supervising.register_supervisor(
        Identity("me", "h", "b", "n", 1, 1), {"tasks": queue}, 15.0
    )
    opened().enqueue("tasks", 1)  # of which it does not know
    supervising.enqueue(queue, [b"2"])
    [taken] = supervising.turn((), [Want(queue, consumers["tasks"], 5, 5)]).taken
    assert len(taken.messages) == 2
    assert payloads(s3_server, address, tmp_path) == ["1", "2"]
    supervising.close()


def test_a_supervisor_whose_messages_another_took_writes_nothing_late(address, opened, monkeypatch):
    """Its claims are checked against what is there by then, as on any database."""
    from pgqrs.model.states import WorkflowStatus
    from pgqrs.model.writes import Archive, Settle, Write

    late = open_store(pgqrs.Config(address), steady_plans=True)
    late.install()
    queue = late.ensure_queue("tasks")
    late.enqueue(queue, [b"1"])
    ids = [late.register_supervisor(Identity(n, "h", "b", "n", 1, 1), {"tasks": queue}, 15.0) for n in "ab"]
    [taken] = late.turn((), [Want(queue, ids[0][1]["tasks"], 1, 5)]).taken
    monkeypatch.setenv("XDG_CACHE_HOME", str(opened()._messages.database._replica.folder / "elsewhere"))
    other = open_store(pgqrs.Config(address), steady_plans=True)
    other.expire_lease(ids[0][0])
    assert other.recover(5) == 1
    assert len(other.turn((), [Want(queue, ids[1][1]["tasks"], 1, 5)]).taken[0].messages) == 1
    write = Write(taken.messages[0].claim, settle=Settle(WorkflowStatus.Success), message=Archive())
    assert [o.applied for o in late.turn([write]).outcomes] == [False]
    late.close()
    other.close()
