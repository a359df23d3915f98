"""What the core is told, in the past tense, and what it orders, in the imperative. Data only."""

import math
from typing import Any, Literal

from msgspec import Struct

from pgqrs.model.writes import Claim, Claimed, Outcome, Write
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


class Taken(Struct, frozen=True):
    """The answer to a Want: the messages, and the watermark for the next claim. `ready`: a look has found that there are some."""

    queue_id: int
    messages: list[Claimed]
    limit: int
    after: Any
    ready: bool = False


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
    Launched | Received | Exited | Taken | Saved | Held | Gone | Measured | Recalled | Inside | ClaimLost | Hinted | Stop | LeaseLost | Registered | Renewed | Tick
)  # fmt: skip


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


class Want(Struct, frozen=True):
    """A claim. With `polls` it is only a look whether there is anything. `first`: how many of the `limit` may go to what was claimed
    before and is due again, ahead of older messages that are new."""

    queue_id: int
    consumer_id: int
    limit: int
    after: Any
    lapsed: bool
    polls: bool
    first: int = 0


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
