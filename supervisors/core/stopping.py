"""How a supervisor stops: a table that the supervisor follows. `dev.py run stopping` draws
docs/operating.md from it.

A supervisor never returns to a lower level.
"""

from enum import Enum, IntEnum

from msgspec.structs import replace

from supervisors.core.events import Exit


class Level(IntEnum):
    RUNNING = 0
    FINISHING = 1
    STOPPING = 2
    KILLING = 3


DOES = {
    Level.RUNNING: "claims and runs",
    Level.FINISHING: "claims nothing more, gives back what is not begun, finishes what runs",
    Level.STOPPING: "every run stops at its next step, and is given back there",
    Level.KILLING: "workers are killed, what they had is given back, nobody is charged",
}


class Happened(Enum):
    """The events that lead to another level of stopping or to the end."""

    TOLD = "told to stop"
    TOLD_TWICE = "told twice"
    TOLD_THREE_TIMES = "told three times"
    TIME_OVER = "`--drain-timeout` is over"
    EMPTY = "nothing is held any more"
    LEASE_LOST = "the lease is lost"
    AWAY = "the database is away"
    NOTHING_TO_DO = "`--burst`, and nothing is left to do"
    NO_WORKERS = "no worker can be started any more"


TOLD = {1: Happened.TOLD, 2: Happened.TOLD_TWICE, 3: Happened.TOLD_THREE_TIMES}

DRAINED = Exit(0, "drained")
STOPPED = Exit(0, "stopped; runs that were executing are queued again")
STILLBORN = Exit(1, "no worker can be started any more")
LEFT_TO_THE_LEASE = Exit(3, "stopped while the database was away; what ran is given back by its lease")

TABLE: dict[Level, dict[Happened, Level | Exit]] = {
    Level.RUNNING: {
        Happened.TOLD: Level.FINISHING,
        # Two signals before the first was handled, or an exception in `with store.workers()`.
        Happened.TOLD_TWICE: Level.STOPPING,
        Happened.TOLD_THREE_TIMES: Level.KILLING,
        Happened.NOTHING_TO_DO: Exit(0, "nothing left to do"),
        Happened.NO_WORKERS: STILLBORN,
    },
    Level.FINISHING: {
        Happened.TOLD_TWICE: Level.STOPPING,
        Happened.TOLD_THREE_TIMES: Level.KILLING,
        Happened.TIME_OVER: Level.KILLING,
        Happened.EMPTY: DRAINED,
        Happened.LEASE_LOST: LEFT_TO_THE_LEASE,
        Happened.NO_WORKERS: STILLBORN,
    },
    Level.STOPPING: {
        Happened.TOLD_THREE_TIMES: Level.KILLING,
        Happened.TIME_OVER: Level.KILLING,
        Happened.EMPTY: DRAINED,
        Happened.LEASE_LOST: LEFT_TO_THE_LEASE,
        Happened.NO_WORKERS: STILLBORN,
    },
    Level.KILLING: {
        Happened.EMPTY: STOPPED,
        Happened.LEASE_LOST: LEFT_TO_THE_LEASE,
        Happened.AWAY: LEFT_TO_THE_LEASE,
        Happened.NO_WORKERS: STILLBORN,
    },
}


def after(level: Level, happened: Happened, reason: str = "") -> Level | Exit:
    """Returns the level or the exit that follows when the event happens at this level. If the table
    has no entry, the level stays. `reason`, if given, replaces the text of an exit.
    """
    then = TABLE[level].get(happened, level)
    return replace(then, reason=reason) if reason and isinstance(then, Exit) else then
