"""What a run, a worker and the supervisor itself may become: three tables, which the core and the session obey.

Each table says, for each state, which states may follow. `Run.become`, `Worker.become` and `Session._stand` are the only places
where a state changes, and refuse what the tables do not say. docs/architecture.md is drawn from them (`dev.py run states`).
"""

from collections.abc import Mapping
from enum import Enum
from typing import TypeVar


class _State(Enum):
    # By identity. Enum's own hash is a call of Python for each look into a table.
    __hash__ = object.__hash__


class RunState(_State):
    """A run (or a plain message) from its claim to the write that ends the claim. Then the supervisor forgets it."""

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
    """A worker process from the order to start it until it is buried. It may die in every state."""

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
    """What this supervisor is to its database."""

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
    """`then`, if the table lets it follow. A state may always be kept."""
    assert then is now or then in table[now], f"{now.name} does not become {then.name}"
    return then
