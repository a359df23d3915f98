"""A supervisor's turn as data: the claims that it asks for, and what it gets.

A turn is one transaction. The supervisor decides what is in it, and the store carries it out
(`pgqrs.store.turns`).
"""

from collections.abc import MutableSequence, Sequence
from typing import Any

from msgspec import Struct

from pgqrs.model.writes import Claimed, Outcome, Write

Mark = tuple[Any, int]  # (vt, id) of a message


class Watermark(Struct, frozen=True):
    """Where the last claim ended, among new messages and among those that were claimed before. None
    starts at the oldest.
    """

    fresh: Mark | None = None
    again: Mark | None = None


class Want(Struct, frozen=True):
    """A claim that a supervisor asks for.

    `after`: the watermark of the last claim; None scans the whole queue. `lapsed`: the claim also
    takes messages whose library consumer let its claim expire. `polls`: nothing is expected, and
    the store only checks whether there is anything; one statement serves all such queues.

    Up to `first` of the `limit` messages are those that have waited longest for another claim
    (lapsed ones, and those that were claimed before and are due again), even if new messages are
    older. The others come in the order of their due times.
    """

    queue_id: int
    consumer_id: int
    limit: int
    read_ct_max: int
    after: Watermark | None = None
    lapsed: bool = True
    polls: bool = False
    first: int = 0


class Taken(Struct, frozen=True):
    """What a claim got: the `first` messages, then the others, oldest first. `after` is the
    watermark for the next claim. `ready`: the claim was a check (`polls`), and a claim would get
    something.
    """

    want: Want
    messages: list[Claimed]
    after: Watermark | None = None
    ready: bool = False


class Turn(Struct, frozen=True):
    """The result of a turn. `put_off`: writes whose rows another session has locked. Nothing of
    them was written, and their claims hold. They must be written before any later write of the same
    claim.
    """

    outcomes: list[Outcome]
    taken: list[Taken]
    put_off: list[Write] = []


def follows_refused(queued: MutableSequence[Write], outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Removes from `queued` every write that follows a refused write of the same claim, and returns
    their outcomes: refused too.
    """
    refused = {o.write.claim: o.failure for o in outcomes if o.failure is not None}
    if not refused:
        return []
    behind = [w for w in queued if w.claim in refused]
    for w in behind:
        queued.remove(w)
    return [Outcome(w, applied=False, failure=refused[w.claim]) for w in behind]
