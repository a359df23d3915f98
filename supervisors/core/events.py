"""Events (past tense) and commands (imperative) of the session and the core. Data only.

The loop hands events to the session, which hands most of them on to the core. The core's commands come back the same way. The
session keeps `Save`, `Hurry` and `Want` for itself, because it decides what the next turn is made of.
"""

import math
from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from pgqrs.model.turns import Taken, Turn, Want
from pgqrs.model.writes import Claim, Outcome, Write
from supervisors import wire

Kind = Literal["sync", "async"]


# Events


class Launched(Struct, frozen=True):
    """`gated`: runs can be recalled from it without its help (board.py)."""

    worker: int
    pid: int
    gated: bool = False


class Received(Struct, frozen=True):
    worker: int
    frame: wire.Up


class Exited(Struct, frozen=True):
    """A worker is gone and its pipe is drained. `oom`: the kernel's out-of-memory killer took it."""

    worker: int
    signal: str | None
    exit_code: int | None
    cpu_seconds: float | None = None
    peak_rss_bytes: int | None = None
    oom: bool = False
    failure: str | None = None  # why we ended it ourselves, or why it could not be started
    stacks: str | None = None  # where its threads were when a Dump asked for that


class Saved(Struct, frozen=True):
    outcomes: list[Outcome]


class Held(Struct, frozen=True):
    """What the database says that we hold, asked after a transaction whose outcome nobody saw."""

    claims: list[Claim]


class Gone(Struct, frozen=True):
    """These are ours no more, by the database's word: somebody has ended them, or given them to another."""

    claims: list[Claim]


class Measured(Struct, frozen=True):
    """How much memory a worker's process holds just now, and how much CPU time it has used in all."""

    worker: int
    rss_bytes: int
    cpu_s: float = 0.0


class Recalled(Struct, frozen=True):
    """The answer to a Recall, at once. All that the worker said before is received. It is in the run `entered` (0: in none), and
    goes into no other before it is sent a Recall."""

    worker: int
    entered: int


class Inside(Struct, frozen=True):
    """The board says that the worker is in the code of this run, which it does not have, as far as we know; 0: no more."""

    worker: int
    message_id: int


class ClaimLost(Struct, frozen=True):
    """A Want came to nothing: the database was away."""

    queue_id: int


class Hinted(Struct, frozen=True):
    """These queues may hold something new; None: any of them."""

    queues: tuple[str, ...] | None = None


class Stop(Struct, frozen=True):
    """The level it was asked with so far: 1 drain, 2 stop at the next step boundary, 3 now."""

    level: int


class LeaseLost(Struct, frozen=True):
    """Everything that we hold may be another's. `in_flight` writes are on their way; the others were dropped."""

    in_flight: int


class Registered(Struct, frozen=True):
    """We are a supervisor again, with these consumers (queue id to consumer id), until then."""

    consumers: dict[int, int]
    until: float = math.inf


class Renewed(Struct, frozen=True):
    """The lease holds until then."""

    until: float


class Tick(Struct, frozen=True):
    pass


Event = (
    Launched | Received | Exited | Taken | Saved | Held | Gone | Measured | Recalled | Inside | ClaimLost
    | Hinted | Stop | LeaseLost | Registered | Renewed | Tick
)  # fmt: skip


# Events of the session alone


class Unreachable(Struct, frozen=True):
    """The database cannot be reached, or refuses the turn for a reason that is no value's fault. The turn is being retried."""

    error: str


class Watched(Struct, frozen=True):
    """What the connection that listens for hints says of the database: why it is away, None while it is there."""

    away: str | None


class LeaseTaken(Struct, frozen=True):
    """The database says that our lease is over: another supervisor has taken over what we held."""


class LookedAround(Struct, frozen=True):
    """The answer to a LookAround. `gone`: which of the claims are no longer ours. The counts are of messages: taken back from
    dead supervisors, taken back from clients of 0.15, and due again because the clock went back."""

    gone: Sequence[Claim]
    recovered: int = 0
    reclaimed: int = 0
    brought_back: int = 0


class Unanswered(Struct, frozen=True):
    """A Join or a LookAround came to nothing: the database was away."""


class ParentGone(Struct, frozen=True):
    """The program that this supervisor works for has died."""


class NoWorkers(Struct, frozen=True):
    """No worker can be started any more."""

    reason: str


# Commands


class Launch(Struct, frozen=True):
    worker: int
    kind: Kind


class Send(Struct, frozen=True):
    worker: int
    frame: wire.Down


class Recall(Struct, frozen=True):
    """The worker is to go into no other run than the one that it is in."""

    worker: int


class Dump(Struct, frozen=True):
    """It is to say where its threads are: what it says comes with its Exited."""

    worker: int


class Kill(Struct, frozen=True):
    worker: int
    force: bool


class Save(Struct, frozen=True):
    """To be committed; `urgent`: at once, for somebody waits for it."""

    write: Write
    urgent: bool = False


class Hurry(Struct, frozen=True):
    """What is waiting to be committed is waited for."""


NoteLevel = Literal["info", "warning", "error"]


class Note(Struct, frozen=True):
    """For people. `run` is the message's id; `is_message`: of a plain message."""

    text: str
    level: NoteLevel = "info"
    run: int | None = None
    is_message: bool = False


class Exit(Struct, frozen=True):
    code: int
    reason: str


Command = Launch | Send | Recall | Dump | Kill | Save | Hurry | Want | Note | Exit


# Commands of the session alone


class Commit(Struct, frozen=True):
    """A turn: one transaction with these writes and claims. `again`: writes that were put off because another session had locked
    their rows. They are written after the others, in a transaction of their own, and may have been committed before, unseen."""

    writes: Sequence[Write]
    wants: Sequence[Want]
    again: Sequence[Write] = ()


class TurnEnded(Struct, frozen=True):
    """The answer to a Commit. `held` is what the database says that we hold; it is asked only after a failure, when the answers to
    the claims were lost."""

    commit: Commit
    turn: Turn
    held: list[Claim] | None = None


class Join(Struct, frozen=True):
    """Become a supervisor: again, after a lost lease. The answer is Registered or Unanswered."""


class LookAround(Struct, frozen=True):
    """Take back what dead supervisors held, and ask which of these claims are still ours. The answer is LookedAround or
    Unanswered."""

    claims: Sequence[Claim]
    consumers: Sequence[int]


class Sever(Struct, frozen=True):
    """Break off what waits for an answer of the database: the turn, and with `lease` the lease's renewal too."""

    lease: bool


class Listen(Struct, frozen=True):
    """Whether to read the workers' frames. Workers whose frames are not read wait."""

    listens: bool


SessionEvent = (
    Event | TurnEnded | Unreachable | Watched | LeaseTaken | LookedAround | Unanswered | ParentGone | NoWorkers
)  # fmt: skip
SessionCommand = (
    Launch | Send | Recall | Dump | Kill | Note | Exit | Commit | Join | LookAround | Sever | Listen
)  # fmt: skip
