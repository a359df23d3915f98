"""The supervisor's threads for the database, without one."""

import threading
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

import pytest

from pgqrs import errors
from pgqrs.model.states import WorkflowStatus
from pgqrs.model.turns import Turn, Want
from pgqrs.model.writes import Claim, Outcome, Step, Write
from supervisors.core.events import Commit, TurnEnded, Unreachable
from supervisors.loop.aside import Answer, Aside
from supervisors.loop.lease import Lease
from supervisors.loop.turns import Broken, Turns, sever

AWAY = errors.PgqrsConnectionError("away")
SOON_S = 10.0


# Turns


class Store:
    """Remembers what it was asked, and fails as often as `fails` says of a transaction."""

    def __init__(self, fails: Callable[[list[Write]], Exception | None] = lambda _: None) -> None:
        self.fails = fails
        self.turns: list[tuple[list[Write], int, bool]] = []
        self.locked: set[int] = set()  # messages
        self.holds = [Claim(9, 1, 1)]

    def turn(self, writes: Any, wanted: Any = (), unsure: bool = False) -> Turn:
        self.turns.append((list(writes), len(wanted), unsure))
        if error := self.fails(list(writes)):
            raise error
        put_off = [w for w in writes if w.claim.message_id in self.locked]
        return Turn([Outcome(w, True) for w in writes if w not in put_off], [], put_off)

    def held(self, consumers: Any) -> list[Claim]:
        return self.holds


def write(n: int, position: int = 0) -> Write:
    return Write(Claim(n, 1, 1), step=Step(position, "s", WorkflowStatus.Success, b"1"))


WANTED = Want(1, 1, 10, 5)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[TurnEnded, list[str]]]]:
    """Has a job carried out. Returns what came of it, and what the loop was told before."""
    monkeypatch.setattr("supervisors.loop.turns.RETRY_S", (0.0,))
    open_turns: list[Turns] = []

    def run(store: Store, job: Commit) -> tuple[TurnEnded, list[str]]:
        waked = threading.Event()
        turns = Turns(store, waked.set, time.monotonic)  # type: ignore[arg-type]
        open_turns.append(turns)
        turns.submit(job)
        told = []
        while True:
            assert waked.wait(SOON_S)
            news = turns.news.get(timeout=SOON_S)
            match news:
                case TurnEnded():
                    return news, told
                case Unreachable():
                    told.append("away")
                case Broken():
                    raise news.error

    yield run
    for turns in open_turns:
        turns.close()


def outcomes(done: TurnEnded) -> list[Write]:
    return [o.write for o in done.turn.outcomes]


def test_a_job_is_one_transaction_with_its_claims(run):
    store, writes = Store(), [write(n) for n in range(5)]
    done, told = run(store, Commit(writes, [WANTED]))
    assert store.turns == [(writes, 1, False)]
    assert (outcomes(done), done.held, told) == (writes, None, [])


def test_after_a_failure_all_is_repeated_as_unsure_and_the_claims_are_asked_for(run):
    failures = iter([AWAY])
    store, writes = Store(lambda _: next(failures, None)), [write(n) for n in range(4)]
    done, told = run(store, Commit(writes, [WANTED]))
    assert all((wanted, unsure) == (0, True) for _, wanted, unsure in store.turns[1:])
    assert (outcomes(done), done.held, told) == (writes, store.holds, ["away"])


def test_a_turn_that_always_fails_at_its_size_is_committed_in_parts(run):
    """As where the server, or something on the way to it, has a limit."""
    store = Store(lambda writes: AWAY if len(writes) > 3 else None)
    writes = [write(n) for n in range(40)]
    done, _ = run(store, Commit(writes, ()))
    assert outcomes(done) == writes


def test_a_turn_that_only_single_writes_get_through_is_committed_one_by_one(run):
    store = Store(lambda writes: AWAY if len(writes) > 1 else None)
    writes = [write(n) for n in range(5)]
    done, _ = run(store, Commit(writes, ()))
    assert outcomes(done) == writes


def test_after_an_outage_the_parts_grow_again(run):
    failures = iter([AWAY] * 12)
    store, writes = Store(lambda _: next(failures, None)), [write(n) for n in range(1000)]
    done, _ = run(store, Commit(writes, ()))
    assert outcomes(done) == writes
    assert len(store.turns) < 12 + 12


def test_what_was_put_off_goes_in_a_transaction_of_its_own_behind_the_others(run):
    store, new, again = Store(), [write(1)], [write(2), write(3)]
    done, _ = run(store, Commit(new, [WANTED], again))
    assert store.turns == [(new, 1, False), (again, 0, True)]
    assert outcomes(done) == new + again


def test_in_parts_too_a_claims_later_writes_wait_for_what_is_locked(run):
    failures = iter([AWAY])
    store = Store(lambda _: next(failures, None))
    store.locked = {1}
    writes = [write(1), write(2), write(1, 1), write(3)]
    done, _ = run(store, Commit(writes, ()))
    assert outcomes(done) == [writes[1], writes[3]]
    assert done.turn.put_off == [writes[0], writes[2]]
    assert not any(write(1, 1) in asked for asked, *_ in store.turns[1:])


def test_what_no_waiting_mends_reaches_the_loop(run):
    with pytest.raises(errors.SchemaError):
        run(Store(lambda _: errors.SchemaError("gone")), Commit([write(1)], ()))


def test_closing_ends_the_tries_and_the_thread():
    waked = threading.Event()
    turns = Turns(Store(lambda _: AWAY), waked.set, time.monotonic)  # type: ignore[arg-type]
    turns.submit(Commit([write(1)], ()))
    assert isinstance(turns.news.get(timeout=SOON_S), Unreachable)
    turns.close()
    assert not turns._thread.is_alive()
    assert isinstance(turns.news.get(timeout=SOON_S), Broken)


# The lease


class Renewals:
    """Answers each renewal with the next of these, and says when it was asked."""

    def __init__(self, *answers: bool | Exception) -> None:
        self.answers = iter(answers)
        self.asked: SimpleQueue[float] = SimpleQueue()
        self.count = 0

    def renew_lease(self, supervisor_id: int, lease_s: float) -> bool:
        self.count += 1
        self.asked.put(time.monotonic())
        answer = next(self.answers, True)
        if isinstance(answer, Exception):
            raise answer
        return answer


class Leased:
    def __init__(self, store: Any, lease_s: float, at_work: Callable[[], bool] = lambda: True) -> None:
        self.waked = threading.Event()
        self.began = time.monotonic()
        self.lease = Lease(store, 1, lease_s, self.waked.set, time.monotonic, self.began, at_work)

    def __enter__(self) -> "Leased":
        return self

    def __exit__(self, *_: object) -> None:
        self.lease.close()


def test_none_of_the_threads_keeps_a_process_from_its_end():
    """Each may wait for a server that says nothing."""
    turns, aside = Turns(Store(), lambda: None, time.monotonic), Aside(lambda: None)  # type: ignore[arg-type]
    with Leased(Store(), 60.0) as leased:
        assert [t._thread.daemon for t in (turns, aside, leased.lease)] == [True] * 3
    turns.close()
    aside.close(SOON_S)


@pytest.mark.slow
def test_a_lease_outlives_renewals_that_take_more_than_a_third_of_it():
    """Each begins a third of the lease after the last began; from its end it would come too late."""
    lease_s, takes_s = 1.2, 0.5

    class SlowStore:
        def renew_lease(self, supervisor_id: int, lease_s: float) -> bool:
            time.sleep(takes_s)
            return True

    with Leased(SlowStore(), lease_s) as leased:
        left_s = []
        while time.monotonic() < leased.began + 3 * lease_s:
            left_s.append(leased.lease.until - time.monotonic())
            time.sleep(0.01)
    assert min(left_s) > 0, f"it ran out for {-min(left_s):.2f} s"


def test_a_lost_lease_wakes_the_loop_and_is_renewed_no_more():
    store = Renewals(False)
    with Leased(store, 0.3) as leased:
        assert leased.waked.wait(SOON_S)
        assert leased.lease.lost
        leased.lease._thread.join(SOON_S)
        assert not leased.lease._thread.is_alive()
        assert leased.lease.until == leased.began + 0.3
    assert store.count == 1


@pytest.mark.slow
def test_after_a_renewal_that_failed_the_next_comes_sooner():
    store = Renewals(AWAY, AWAY)
    with Leased(store, 3.0):
        first, second, third = (store.asked.get(timeout=SOON_S) for _ in range(3))
    assert second - first < 0.8
    assert third - second < 0.8
    assert second - first >= 0.29


def test_a_renewed_lease_counts_from_before_it_was_asked_for():
    store = Renewals()
    with Leased(store, 0.6) as leased:
        asked, _ = (store.asked.get(timeout=SOON_S) for _ in range(2))
        assert leased.began + 0.6 < leased.lease.until <= asked + 0.6 + 0.3
        assert not leased.lease.lost


def test_a_lease_is_not_renewed_while_its_supervisor_stands():
    store, at_work, asked = Renewals(), threading.Event(), threading.Semaphore(0)

    def is_at_work() -> bool:
        asked.release()
        return at_work.is_set()

    with Leased(store, 0.3, is_at_work) as leased:
        for _ in range(5):
            assert asked.acquire(timeout=SOON_S)
        assert (store.count, leased.lease.until) == (0, leased.began + 0.3)
        at_work.set()
        store.asked.get(timeout=SOON_S)


def test_closing_a_lease_ends_its_thread_at_once():
    leased = Leased(Renewals(), 600.0)
    began = time.monotonic()
    leased.lease.close()
    assert not leased.lease._thread.is_alive()
    assert time.monotonic() - began < 5


# What is asked aside


def test_what_is_asked_aside_is_answered_and_a_database_that_is_away_answers_none():
    waked = threading.Event()
    aside = Aside(waked.set)

    def away() -> int:
        raise AWAY

    heard: list[int | None] = []
    for call in (lambda: 7, away):
        aside.ask(call, heard.append)
        news = aside.news.get(timeout=SOON_S)
        assert isinstance(news, Answer)
        news.then(news.found)
    assert waked.is_set()
    assert heard == [7, None]
    aside.close(SOON_S)
    assert not aside._thread.is_alive()


@pytest.mark.parametrize("error", [errors.SchemaError("gone"), ValueError("ours")])
def test_what_else_goes_wrong_aside_reaches_the_loop(error):
    aside = Aside(lambda: None)

    def fail() -> None:
        raise error

    aside.ask(fail, lambda _: None)
    news = aside.news.get(timeout=SOON_S)
    assert isinstance(news, Broken)
    assert news.error is error
    aside.close(SOON_S)


def test_what_was_asked_before_the_end_is_still_carried_out():
    aside, done = Aside(lambda: None), threading.Event()
    aside.ask(done.set, lambda _: None)
    aside.close(SOON_S)
    assert done.is_set()


# Severing


@pytest.mark.postgres
def test_severing_ends_a_wait_for_a_silent_server(postgres_dsn):
    from pgqrs.config import Config
    from pgqrs.store import open_store

    store = open_store(Config(postgres_dsn), steady_plans=True)
    store.install()
    begun, failed = threading.Event(), SimpleQueue[BaseException]()

    def wait() -> None:
        try:
            with store.database.transaction() as tx:
                begun.set()
                tx._connection.execute("select pg_sleep(60)")  # type: ignore[attr-defined]
        except errors.PgqrsConnectionError as e:
            failed.put(e)

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        assert begun.wait(SOON_S)
        sever(store)
        assert isinstance(failed.get(timeout=SOON_S), errors.PgqrsConnectionError)
        assert store.held([1]) == []  # it connects anew
    finally:
        thread.join(SOON_S)
        store.close()
