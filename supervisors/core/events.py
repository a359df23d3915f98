"""The events (named in the past tense) and the commands (named in the imperative) of the session
and the core. Data only.

The loop hands events to the session, which hands most of them on to the core. The core's commands
go to the session, which hands them on to the loop. The session keeps `Save`, `Hurry` and `Want`,
because it decides what is in the next turn.
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
    """A worker process has started. `gated`: its runs can be recalled without its help (board.py)."""

    worker: int
    pid: int
    gated: bool = False


class Received(Struct, frozen=True):
    worker: int
    frame: wire.Up


class Exited(Struct, frozen=True):
    """A worker has died, and its pipe was read to the end. `oom`: the kernel's out-of-memory killer
    killed it.
    """

    worker: int
    signal: str | None
    exit_code: int | None
    cpu_seconds: float | None = None
    peak_rss_bytes: int | None = None
    oom: bool = False
    # Why the supervisor ended the worker, or why the worker could not be started.
    failure: str | None = None
    # Where the worker's threads were when a Dump asked for that.
    stacks: str | None = None


class Saved(Struct, frozen=True):
    outcomes: list[Outcome]


class Held(Struct, frozen=True):
    """The claims that the database lists for this supervisor. The supervisor asks for them after a
    transaction whose outcome is unknown.
    """

    claims: list[Claim]


class Gone(Struct, frozen=True):
    """According to the database, these claims no longer belong to this supervisor: somebody else
    has ended or claimed the runs.
    """

    claims: list[Claim]


class Measured(Struct, frozen=True):
    """The memory that a worker's process holds now, and the CPU time that it has used since its
    start.
    """

    worker: int
    rss_bytes: int
    cpu_s: float = 0.0


class Recalled(Struct, frozen=True):
    """The immediate answer to a Recall. Every frame that the worker sent earlier has been received.
    The worker is in the run `entered` (0: in none), and enters no other run before it is sent a
    Recall frame. `position`: the step of that run, or the item of that range, that it has begun
    last or begins next; None if that is unknown.
    """

    worker: int
    entered: int
    position: int | None = None


class Inside(Struct, frozen=True):
    """The board says that the worker is in the code of this run, although the core has not given it
    the run. 0: the worker is in no such run any more.
    """

    worker: int
    message_id: int


class ClaimLost(Struct, frozen=True):
    """The database did not answer a Want, because it was away."""

    queue_id: int


class Hinted(Struct, frozen=True):
    """These queues may hold new messages. None: any queue may."""

    queues: tuple[str, ...] | None = None


class Stop(Struct, frozen=True):
    """The supervisor was told to stop. `level` is the highest level so far: 1 drain, 2 stop each
    run at its next step boundary, 3 stop now.
    """

    level: int


class LeaseLost(Struct, frozen=True):
    """Every run that this supervisor holds may belong to another supervisor. The writes in
    `in_flight` are under way; the session has dropped all others.
    """

    in_flight: int


class Registered(Struct, frozen=True):
    """This supervisor is registered until the time `until`. The message has its consumers (queue id
    to consumer id). `locked`: as in LookedAround.
    """

    consumers: dict[int, int]
    until: float = math.inf
    locked: bool = False


class Renewed(Struct, frozen=True):
    """The lease holds until the time `until`."""

    until: float


class Tick(Struct, frozen=True):
    pass


class LookedAround(Struct, frozen=True):
    """The answer to a LookAround. `gone`: the claims that no longer belong to this supervisor. The
    counts are of messages: taken back from dead supervisors, taken back from clients of 0.15, and
    due again because the clock went back. `locked`: a dead supervisor still holds messages, because
    another session has locked them.
    """

    gone: Sequence[Claim]
    recovered: int = 0
    reclaimed: int = 0
    brought_back: int = 0
    locked: bool = False


Event = (
    Launched | Received | Exited | Taken | Saved | Held | Gone | Measured | Recalled | Inside | ClaimLost
    | Hinted | Stop | LeaseLost | Registered | Renewed | LookedAround | Tick
)  # fmt: skip


# Events of the session alone


class Unreachable(Struct, frozen=True):
    """The database cannot be reached, or refuses the turn for a reason other than a value. The turn
    is being retried.
    """

    error: str


class Watched(Struct, frozen=True):
    """What the watch for hints has found: why the database is away, or None while it answers."""

    away: str | None


class LeaseTaken(Struct, frozen=True):
    """According to the database, the lease of this supervisor is over, and another supervisor has
    taken over its runs.
    """


class Unanswered(Struct, frozen=True):
    """The database did not answer a Join or a LookAround, because it was away."""


class ParentGone(Struct, frozen=True):
    """The program that started this supervisor has died."""


class NoWorkers(Struct, frozen=True):
    """No more workers can be started."""

    reason: str


# Commands


class Launch(Struct, frozen=True):
    worker: int
    kind: Kind


class Send(Struct, frozen=True):
    worker: int
    frame: wire.Down


class Recall(Struct, frozen=True):
    """Closes the worker's gate: the worker must enter no run other than the one that it is in."""

    worker: int


class Dump(Struct, frozen=True):
    """The worker must write the stacks of its threads. They are reported with its Exited."""

    worker: int


class Kill(Struct, frozen=True):
    worker: int
    force: bool


class Save(Struct, frozen=True):
    """A write to commit. `urgent`: commit it at once, because a worker waits for it."""

    write: Write
    urgent: bool = False


class Hurry(Struct, frozen=True):
    """A worker waits for the writes that are not yet committed."""


NoteLevel = Literal["info", "warning", "error"]


class Note(Struct, frozen=True):
    """A line of the log. `run` is the id of the message. `is_message`: it is a plain message, not a
    run.
    """

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
    """A turn: one transaction with these writes and claims.

    `again`: writes that an earlier turn put off, because another session had locked their rows.
    They are written after the others, in a transaction of their own. The earlier turn may have
    committed them without an answer.
    """

    writes: Sequence[Write]
    wants: Sequence[Want]
    again: Sequence[Write] = ()


class TurnEnded(Struct, frozen=True):
    """The answer to a Commit. `held`: the claims that the database lists for this supervisor. The
    turn reads this list only after a failure in which the answers to its claims were lost.
    """

    commit: Commit
    turn: Turn
    held: list[Claim] | None = None


class Join(Struct, frozen=True):
    """Registers this supervisor again after a lost lease. Answered by Registered or Unanswered."""


class LookAround(Struct, frozen=True):
    """Takes back the runs of dead supervisors, and checks which of these claims still belong to
    this supervisor. The answer is LookedAround or Unanswered.
    """

    claims: Sequence[Claim]
    consumers: Sequence[int]


class Sever(Struct, frozen=True):
    """Breaks off the turn that waits for an answer of the database. With `lease`, also breaks off
    the renewal of the lease.
    """

    lease: bool


class Listen(Struct, frozen=True):
    """Whether the loop reads the workers' frames. While it does not, workers that send frames have
    to wait.
    """

    listens: bool


SessionEvent = (
    Event | TurnEnded | Unreachable | Watched | LeaseTaken | Unanswered | ParentGone
    | NoWorkers
)  # fmt: skip
SessionCommand = (
    Launch | Send | Recall | Dump | Kill | Note | Exit | Commit | Join | LookAround | Sever | Listen
)  # fmt: skip
