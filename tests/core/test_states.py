"""The tables of states: what they say is what the page shows, and nothing can go another way."""

from enum import Enum
from typing import Any

import pytest

from pgqrs.model.writes import Claim, Claimed
from supervisors.core.state import Function, Run, Worker
from supervisors.core.states import RUNS, STANDINGS, WORKERS, RunState, WorkerState, follow
from tests.states_page import PAGE, redrawn, table

TABLES: list[Any] = [RUNS, WORKERS, STANDINGS]


@pytest.mark.parametrize("states", TABLES)
def test_every_state_has_a_row_and_every_state_can_be_reached(states: dict[Enum, frozenset[Enum]]) -> None:
    [kind] = {type(s) for s in states}
    assert list(states) == list(kind)
    first = next(iter(states))
    reached, waiting = {first}, [first]
    while waiting:
        for then in states[waiting.pop()] - reached:
            reached.add(then)
            waiting.append(then)
    assert reached == set(kind)


@pytest.mark.parametrize("states", TABLES)
def test_nothing_goes_another_way(states: dict[Enum, frozenset[Enum]]) -> None:
    for now in states:
        for then in states:
            if then is now or then in states[now]:
                assert follow(states, now, then) is then
            else:
                with pytest.raises(AssertionError, match=f"{now.name} does not become {then.name}"):
                    follow(states, now, then)


def test_a_run_and_a_worker_change_only_by_their_tables() -> None:
    flow = Function("flow", "workflow", False, "flow", 1, 11)
    run = Run(Claim(1, 1, 1), flow, Claimed(Claim(1, 1, 1), b"null", 1), 0)
    with pytest.raises(AssertionError):
        run.become(RunState.STARTED)
    run.become(RunState.SENT)
    run.become(RunState.STARTED)
    assert (run.started, run.ending) == (True, False)
    worker = Worker(1, "sync", 0.0)
    with pytest.raises(AssertionError):
        worker.become(WorkerState.RETIRING)
    worker.become(WorkerState.READY)
    assert worker.ready
    worker.become(WorkerState.KILLED)
    assert not worker.ready


def test_the_page_shows_the_tables() -> None:
    page = PAGE.read_text()
    assert page == redrawn(page), "run: python3 dev.py run states"
    for states in TABLES:
        assert table(states) in page
