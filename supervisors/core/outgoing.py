"""Writes on their way to the database: which of them make up the next turn, and when it is due.

A turn is bounded by its writes and by their bytes. Writes whose rows another session has locked are put off, and are tried again
beside the turns that follow. A later write of the same claim waits for them: a run's writes are made in their order.
"""

from collections import deque
from collections.abc import Sequence

from pgqrs.model.turns import follows_refused
from pgqrs.model.writes import Claim, Outcome, Write

TURN_WRITES_MAX = 1000
TURN_BYTES_MAX = 8 * 1024 * 1024  # of values: encoded in 0.1 s, and far below any limit of a server
# What may wait for a turn, in writes and in bytes of their values. With more, workers wait with what they have to say.
WRITES_MAX, WRITES_BYTES_MAX = 10 * TURN_WRITES_MAX, 256 * 1024 * 1024
AGAIN_S = 0.05  # until what is locked is tried again; twice as long after each further time
AGAIN_MAX_S = 1.0


class Outgoing:
    def __init__(self) -> None:
        self._writes: deque[Write] = deque()
        self._bytes = 0  # of their values
        self._put_off: list[Write] = []
        self._claims: set[Claim] = set()  # of what is put off
        self._again_at = 0.0
        self._again_s = AGAIN_S
        self.oldest: float | None = None  # when the first of them came that no turn has taken
        self.hurried = False  # somebody waits for them
        self.locked_since: float | None = None

    def __bool__(self) -> bool:
        return bool(self._writes)

    @property
    def has_room(self) -> bool:
        return len(self._writes) < WRITES_MAX and self._bytes < WRITES_BYTES_MAX

    def add(self, write: Write, now: float, urgent: bool = False) -> None:
        self._writes.append(write)
        self._bytes += write.size
        if self.oldest is None:
            self.oldest = now
        if urgent:
            self.hurried = True

    def clear(self) -> None:
        self._writes.clear()
        self._bytes = 0
        self._put_off.clear()
        self._claims.clear()
        self.oldest = self.locked_since = None
        self._again_s = AGAIN_S

    def next_again(self) -> float | None:
        """When what is put off is to be tried again."""
        return self._again_at if self._put_off else None

    def take(self, now: float) -> tuple[list[Write], Sequence[Write]]:
        """The writes of the next turn, and what was put off where it is time to try that again."""
        if len(self._writes) <= TURN_WRITES_MAX and self._bytes <= TURN_BYTES_MAX and not self._put_off:
            taken = list(self._writes)
            self._writes.clear()
            self._bytes, self.oldest, self.hurried = 0, None, False
            return taken, ()
        taken = []
        size = 0
        while self._writes and len(taken) < TURN_WRITES_MAX:
            write = self._writes[0]
            if write.claim in self._claims:
                self._put_off.append(self._writes.popleft())
                self._bytes -= write.size
                continue
            size += write.size
            if taken and size > TURN_BYTES_MAX:
                break
            taken.append(self._writes.popleft())
            self._bytes -= write.size
        self.oldest = now if self._writes else None
        self.hurried = bool(self._writes) and self.hurried
        again: Sequence[Write] = ()
        if self._put_off and now >= self._again_at:
            again, self._put_off = self._put_off, []
        return taken, again

    def drop_behind(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """Takes out whatever comes behind a refused write of the same claim: a run must not end with a step missing. What became
        of it."""
        dropped = follows_refused(self._writes, outcomes)
        self._bytes -= sum(o.write.size for o in dropped)
        return dropped + follows_refused(self._put_off, outcomes)

    def put_off(self, writes: Sequence[Write], now: float) -> None:
        """What a turn could not write because of somebody else's locks; called after every turn."""
        self._put_off = [*writes, *self._put_off]
        self._claims = {w.claim for w in self._put_off}
        if not writes:
            if not self._put_off:
                self.locked_since, self._again_s = None, AGAIN_S
            return
        self.locked_since = self.locked_since or now
        self._again_at = now + self._again_s
        self._again_s = min(self._again_s * 2, AGAIN_MAX_S)
