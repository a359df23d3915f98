"""The supervisor's thread for turns, without a database: what is refused for no fault of a value
is repeated, as while it is away."""

import threading
import time
from collections.abc import Callable

import pytest

from pgqrs import errors
from pgqrs.model.turns import Turn
from pgqrs.model.writes import Claim, Write
from supervisors.core.events import Commit, TurnEnded, Unreachable
from supervisors.loop.aside import Answer, Aside
from supervisors.loop.turns import Broken, Turns

WRITE = Write(Claim(1, 1, 1))
NO = errors.DatabaseError("permission denied for table pgqrs_messages")


class Store:
    """Refuses as often as it has errors."""

    def __init__(self, *refusals: Exception) -> None:
        self.refusals = list(refusals)
        self.asked: list[tuple[tuple[object, ...], bool]] = []

    def turn(self, writes: object, wanted: tuple[object, ...] = (), unsure: bool = False) -> Turn:
        self.asked.append((tuple(wanted), unsure))
        if self.refusals:
            raise self.refusals.pop(0)
        return Turn([], [])

    def held(self, consumers: object) -> list[object]:
        return []


def news_of(store: Store, job: Commit) -> list[object]:
    """Of the job, up to its end."""
    woken = threading.Event()
    turns = Turns(store, woken.set, time.monotonic)  # type: ignore[arg-type]
    told: list[object] = []
    try:
        turns.submit(job)
        while not told or isinstance(told[-1], Unreachable):
            told.append(turns.news.get(timeout=5))
    finally:
        turns.close()
    return told


def test_a_refusal_is_told_as_away_and_the_turn_is_made_again() -> None:
    store = Store(NO, NO)
    told = news_of(store, Commit((WRITE,), ("a claim",)))  # type: ignore[arg-type]
    assert [type(n) for n in told] == [Unreachable, TurnEnded]
    assert isinstance(told[0], Unreachable)
    assert "permission denied" in told[0].error
    assert store.asked == [(("a claim",), False), ((), True), ((), True)]


def test_a_refused_claim_is_told_as_away_and_left_to_the_next_turn() -> None:
    store = Store(NO)
    told = news_of(store, Commit((), ("a claim",)))  # type: ignore[arg-type]
    assert [type(n) for n in told] == [Unreachable, TurnEnded]
    assert store.asked == [(("a claim",), False)]


def test_a_schema_that_is_gone_is_not_waited_for() -> None:
    [told] = news_of(Store(errors.SchemaError("no tables")), Commit((WRITE,), ()))
    assert isinstance(told, Broken)


@pytest.mark.parametrize("error", [NO, errors.PgqrsConnectionError("away")])
def test_what_is_asked_aside_hears_nothing_where_it_is_refused(error: Exception) -> None:
    aside, heard = Aside(lambda: None), []

    def refuse() -> None:
        raise error

    then: Callable[[object], None] = heard.append
    try:
        aside.ask(refuse, then)
        answer = aside.news.get(timeout=5)
        assert isinstance(answer, Answer)
        answer.then(answer.found)
    finally:
        aside.close(5)
    assert heard == [None]
