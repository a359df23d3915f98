"""The thread that carries out turns, so that the loop never waits for the database.

Three threads talk to the database. The thread of this module carries out one turn after another,
each in a transaction. While a turn is under way, the loop collects the writes of the next one:
group commit. The thread of `lease.py` renews the lease on a connection of its own, so that a
renewal never waits for a slow commit. The thread of `aside.py` makes all other calls. Even if the
database does not answer at all, the loop can kill workers when the lease ends.
"""

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from msgspec import Struct

from pgqrs import errors
from pgqrs.model.turns import Turn, follows_refused
from pgqrs.model.writes import Claim, Outcome, Write
from pgqrs.store.store import MessageStore
from supervisors.core.events import Commit, TurnEnded, Unreachable

# The delays between attempts to reach a database that is away.
RETRY_S = (0.05, 0.1, 0.2, 0.5, 1.0)


class Broken(Struct, frozen=True):
    """The thread has met an error that it cannot handle."""

    error: BaseException


class Turns:
    """Carries out one Commit at a time (`submit`). After each addition to `news` its thread calls
    `wake`.
    """

    def __init__(self, store: MessageStore, wake: Callable[[], None], clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock
        self._wake = wake
        self._commits: queue.SimpleQueue[Commit | None] = queue.SimpleQueue()
        self.news: queue.SimpleQueue[TurnEnded | Unreachable | Broken] = queue.SimpleQueue()
        # When the turn under way was submitted, or None.
        self.asked_at: float | None = None
        self.consumers: tuple[int, ...] = ()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pgqrs-turns", daemon=True)
        self._thread.start()

    def submit(self, commit: Commit) -> None:
        self.asked_at = self._clock()
        self._commits.put(commit)

    def close(self, timeout_s: float = 5.0) -> None:
        self._stopping.set()
        self._commits.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (commit := self._commits.get()) is not None:
            try:
                ended = self._carry_out(commit)
                self.asked_at = None
                self._say(ended)
            except BaseException as e:
                self._say(Broken(e))
                return

    def _carry_out(self, commit: Commit) -> TurnEnded:
        writes, wants, held = commit.writes, commit.wants, None
        try:
            turn = self._store.turn(writes, wants) if writes or wants else Turn([], [])
            if not commit.again:
                return TurnEnded(commit, turn)
            again = self._in_parts(commit.again)
        except errors.SchemaError:
            # Waiting does not help.
            raise
        except (errors.PgqrsConnectionError, errors.DatabaseError) as e:
            # Whether this attempt was committed is unknown. The writes are safe to repeat. `_held`
            # finds the messages that were claimed without an answer.
            self._pause(e, 0)
            turn = self._in_parts([*writes, *commit.again], failures=1)
            again, held = Turn([], []), self._held()
        whole = Turn(turn.outcomes + again.outcomes, turn.taken, turn.put_off + again.put_off)
        return TurnEnded(commit, whole, held)

    def _in_parts(self, writes: Sequence[Write], failures: int = 0) -> Turn:
        """Repeats the writes until all are committed. A failure may be due to the size of the
        transaction. So after a failure a transaction has half as many writes, and after a success
        twice as many.
        """
        rest, outcomes, put_off = list(writes), list[Outcome](), list[Write]()
        most = max(1, len(rest) // 2) if failures else len(rest)
        while rest:
            late = {w.claim for w in put_off}
            outcomes += follows_refused(rest, outcomes)
            part = [w for w in rest[:most] if w.claim not in late]
            try:
                turn = self._store.turn(part, (), unsure=True) if part else Turn([], [])
            except errors.SchemaError:
                raise
            except (errors.PgqrsConnectionError, errors.DatabaseError) as e:
                self._pause(e, failures)
                failures += 1
                most = max(1, most // 2)
                continue
            outcomes += turn.outcomes
            put_off += [w for w in rest[:most] if w.claim in late] + turn.put_off
            del rest[:most]
            most *= 2
        return Turn(outcomes, [], put_off)

    def _held(self) -> list[Claim]:
        failures = 1
        while True:
            try:
                return self._store.held(self.consumers)
            except errors.SchemaError:
                raise
            except (errors.PgqrsConnectionError, errors.DatabaseError) as e:
                self._pause(e, failures)
                failures += 1

    def _pause(self, error: errors.PgqrsError, failures: int) -> None:
        """Waits before the next attempt. Raises the error if the thread should stop."""
        if not failures:
            self._say(Unreachable(str(error)))
        if self._stopping.wait(RETRY_S[min(failures, len(RETRY_S) - 1)]):
            raise error

    def _say(self, news: TurnEnded | Unreachable | Broken) -> None:
        self.news.put(news)
        self._wake()


def sever(*stores: MessageStore) -> None:
    """Breaks off calls that wait for an answer of the database. On a database without a network no
    call can wait without end, so nothing happens there.
    """
    for store in stores:
        if isinstance(store.database, Severable):
            store.database.sever()


@runtime_checkable
class Severable(Protocol):
    """A database that is reached over a network."""

    def sever(self) -> None: ...
