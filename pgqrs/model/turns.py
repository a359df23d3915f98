"""A supervisor's turn as data: the claims that the supervisor asks for, and what the turn returns.

A turn is one transaction. The supervisor decides what is in it, and the store carries it out
(`pgqrs.store.turns`).
"""

from collections.abc import MutableSequence, Sequence
from typing import Any

from msgspec import Struct

from pgqrs.model.writes import Claimed, Outcome, Write

Mark = tuple[Any, int]  # (vt, id) of a message


class Watermark(Struct, frozen=True):
    """Where the last claim ended, among new messages and among messages that were claimed before.
    With None, the next claim starts at the oldest message.
    """

    fresh: Mark | None = None
    again: Mark | None = None


class Want(Struct, frozen=True):
    """A claim that a supervisor asks for.

    `after`: the watermark of the last claim. None scans the whole queue. `lapsed`: the claim also
    takes messages of library consumers whose claim has expired. `polls`: no message is expected, so
    the store only checks whether there is one; one statement serves all such queues.

    Up to `first` of the `limit` messages are those that have waited longest for another claim, even
    if new messages are older. These are lapsed messages, and messages that were claimed before and
    are due again. The other messages come in the order of their due times.
    """

    queue_id: int
    consumer_id: int
    limit: int
    read_ct_max: int
    after: Watermark | None = None
    lapsed: bool = True
    polls: bool = False
    first: int = 0
    # Whether the messages are ranges of maps.
    of_map: bool = False


class Taken(Struct, frozen=True):
    """The answer to a claim: the `first` messages, then the others, oldest first. `after` is the
    watermark for the next claim. `ready`: the claim was only a check (`polls`), and a claim would
    find a message.
    """

    want: Want
    messages: list[Claimed]
    after: Watermark | None = None
    ready: bool = False


class Turn(Struct, frozen=True):
    """The result of a turn. `put_off`: writes whose rows another session has locked. Nothing of
    them was written, and their claims still hold. They must be written before any later write of
    the same claim.
    """

    outcomes: list[Outcome]
    taken: list[Taken]
    put_off: list[Write] = []


def follows_refused(queued: MutableSequence[Write], outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Removes from `queued` every write that follows a refused write of the same claim. Returns the
    outcomes of the removed writes, which count as refused too.
    """
    refused = {o.write.claim: o.failure for o in outcomes if o.failure is not None}
    if not refused:
        return []
    behind = [w for w in queued if w.claim in refused]
    for w in behind:
        queued.remove(w)
    return [Outcome(w, applied=False, failure=refused[w.claim]) for w in behind]
