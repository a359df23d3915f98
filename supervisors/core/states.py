"""The states of a run, a worker and the supervisor itself: three tables that the core and the
session obey.

Each table lists which states may follow each state. A state changes only in `Run.become`,
`Worker.become` and `Session._stand`, which refuse every change that the tables do not list. `dev.py
run states` draws docs/architecture.md from them.
"""

from collections.abc import Mapping
from enum import Enum
from typing import TypeVar


class _State(Enum):
    # Hashed by identity. Enum's own hash costs a Python call for each lookup in a table.
    __hash__ = object.__hash__


class RunState(_State):
    """The states of a run or a plain message, from its claim to the write that ends the claim. Then
    the supervisor forgets it.
    """

    WAITING = "claimed, and not with a worker"
    SENT = "with a worker, which has not begun it"
    STARTED = "begun on its worker"
    SAVING = "off its worker; it waits again once its last writes are committed"
    ENDING = "the write that ends its claim is under way"


RUNS: Mapping[RunState, frozenset[RunState]] = {
    RunState.WAITING: frozenset({RunState.SENT, RunState.ENDING}),
    RunState.SENT: frozenset({RunState.STARTED, RunState.WAITING, RunState.SAVING, RunState.ENDING}),
    RunState.STARTED: frozenset({RunState.WAITING, RunState.SAVING, RunState.ENDING}),
    RunState.SAVING: frozenset({RunState.WAITING, RunState.ENDING}),
    RunState.ENDING: frozenset(),
}


class WorkerState(_State):
    """The states of a worker process, from the order to start it until its exit is reported. A
    worker may die in every state.
    """

    STARTING = "ordered, and not yet ready"
    READY = "can be given runs"
    RETIRING = "finishes what it has, is given nothing more, and is then replaced"
    KILLED = "told to end, by a signal or by the end of its pipe"


WORKERS: Mapping[WorkerState, frozenset[WorkerState]] = {
    WorkerState.STARTING: frozenset({WorkerState.READY, WorkerState.KILLED}),
    WorkerState.READY: frozenset({WorkerState.RETIRING, WorkerState.KILLED}),
    WorkerState.RETIRING: frozenset({WorkerState.KILLED}),
    WorkerState.KILLED: frozenset(),
}


class Standing(_State):
    """The states of this supervisor towards its database."""

    OUTSIDE = "not registered: before the first join, and after a lost lease"
    JOINING = "asks to be registered"
    JOINED = "registered, and the lease holds"


STANDINGS: Mapping[Standing, frozenset[Standing]] = {
    Standing.OUTSIDE: frozenset({Standing.JOINING, Standing.JOINED}),
    Standing.JOINING: frozenset({Standing.JOINED, Standing.OUTSIDE}),
    Standing.JOINED: frozenset({Standing.OUTSIDE}),
}


State = TypeVar("State", bound=_State)


def follow(table: Mapping[State, frozenset[State]], now: State, then: State) -> State:
    """Returns `then` if the table allows the change from `now` to `then`. Keeping a state is always
    allowed.
    """
    assert then is now or then in table[now], f"{now.name} does not become {then.name}"
    return then
