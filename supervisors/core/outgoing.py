"""The writes that wait for the database. Decides which of them are in the next turn, and when the
turn is due.

A turn has at most a certain number of writes and of bytes. If another session has locked the row of
a write, the write is put off, and is retried beside a later turn. Later writes of the same claim
wait for it, because the writes of a run keep their order.
"""

from collections import deque
from collections.abc import Sequence

from pgqrs.model.turns import follows_refused
from pgqrs.model.writes import Claim, Outcome, Write

TURN_WRITES_MAX = 1000
# Bytes of values. Encoding that many takes 0.1 s, and no server has a limit near it.
TURN_BYTES_MAX = 8 * 1024 * 1024
# Bytes of the values of `_writes`.
WRITES_MAX, WRITES_BYTES_MAX = 10 * TURN_WRITES_MAX, 256 * 1024 * 1024
# The delay before locked writes are retried. It doubles with each further attempt.
AGAIN_S = 0.05
AGAIN_MAX_S = 1.0


class Outgoing:
    def __init__(self) -> None:
        self._writes: deque[Write] = deque()
        # Bytes of the values of `_writes`.
        self._bytes = 0
        self._put_off: list[Write] = []
        # The claims of the writes that are put off.
        self._claims: set[Claim] = set()
        self._again_at = 0.0
        self._again_s = AGAIN_S
        # When the oldest write arrived that no turn has taken.
        self.oldest: float | None = None
        # Whether somebody waits for the writes.
        self.hurried = False
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
        """Returns when to retry the writes that were put off."""
        return self._again_at if self._put_off else None

    def take(self, now: float) -> tuple[list[Write], Sequence[Write]]:
        """Returns the writes of the next turn. Also returns the writes that were put off, if it is
        time to retry them.
        """
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
        """Removes every write that follows a refused write of the same claim, because a run must
        not end with a step missing. Returns the outcomes of the removed writes.
        """
        dropped = follows_refused(self._writes, outcomes)
        self._bytes -= sum(o.write.size for o in dropped)
        return dropped + follows_refused(self._put_off, outcomes)

    def put_off(self, writes: Sequence[Write], now: float) -> None:
        """Stores the writes that a turn could not make because another session had locked their
        rows. Called after every turn, also with none.
        """
        self._put_off = [*writes, *self._put_off]
        self._claims = {w.claim for w in self._put_off}
        if not writes:
            if not self._put_off:
                self.locked_since, self._again_s = None, AGAIN_S
            return
        self.locked_since = self.locked_since or now
        self._again_at = now + self._again_s
        self._again_s = min(self._again_s * 2, AGAIN_MAX_S)
