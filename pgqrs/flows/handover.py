"""The order in which an async run receives the results of its steps. The order is the same in every
replay.

The code of a workflow can depend on which of several branches continues first (`as_completed`,
`wait(FIRST_COMPLETED)`, tasks that read from a queue). The order is therefore recorded with the
results: each result has the number at which it `ended`. Between two results, the run comes to rest:

    a result is handed over only if no other code of the run can continue, and only after all results
    that ended before it

What the workflow does between two results then depends only on the earlier results. A replay cannot
repeat what the workflow itself reads from outside (timers, sockets, threads). Such code belongs in
steps.
"""

import asyncio
import contextvars
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pgqrs import errors
from pgqrs.flows.scope import current
from pgqrs.model.writes import RecordedStep

if TYPE_CHECKING:
    from pgqrs.flows.flow import Context

# Code that polls without waiting (`while not done: await sleep(0)`) never comes to rest by itself.
ROUNDS_MAX = 100
# How long the next result may stay unclaimed while the run waits for nothing visible. After that it
# is a mismatch.
STUCK_S = 10.0


class Handover:
    """The order of results in one execution of one run, on the run's event loop."""

    def __init__(self, context: "Context", recorded: Sequence[RecordedStep]) -> None:
        self._context = context
        # The numbers of the results that are still to be handed over, the next one first.
        self._due = deque(sorted(s.ended for s in recorded if s.ended is not None))
        self.ended = self._due[-1] if self._due else 0
        self._names = {s.ended: s.name for s in recorded if s.ended is not None}
        self._asked: dict[int, asyncio.Future[None]] = {}
        self._to_be_cancelled: dict[int, asyncio.Future[None]] = {}
        # Counts down the numbers for results that have none. They come before all others.
        self._early = 0
        self._looking = False
        self._watched: asyncio.TimerHandle | None = None
        # Step bodies in progress.
        self.bodies = 0
        # Steps whose body is in progress or waits to begin.
        self._open = 0
        self._backing_off: list[tuple[float, asyncio.Future[bool]]] = []

    def ends(self) -> int:
        """Assigns the next number to a result that has arrived, and returns it."""
        self.ended += 1
        self._due.append(self.ended)
        return self.ended

    async def turn(self, ended: int | None) -> None:
        """Waits until the result with the number `ended` may be handed over. None stands for a
        result that the run has never received. Such a result is handed over when the run is at
        rest.
        """
        if not self._context.branched:
            self._take(ended)
            return
        if ended is None:
            self._early -= 1
            self._due.appendleft(self._early)
        number = self._early if ended is None else ended
        if self._due and self._due[0] == number and self._at_rest():
            self._due.popleft()
            return
        asked = self._asked[number] = asyncio.get_running_loop().create_future()
        self._look()
        try:
            await asked
        except asyncio.CancelledError:
            if self._asked.get(number) is asked:
                del self._asked[number]
            self.passed(number)
            raise

    async def cancelled_again(self, ended: int | None) -> None:
        """Waits until the workflow cancels the call, as it did when the call was recorded. Never
        returns.
        """
        never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if ended is not None:
            self._to_be_cancelled[ended] = never
        self._look()
        try:
            await never
        finally:
            if ended is not None:
                self._to_be_cancelled.pop(ended, None)
            self.passed(ended)
        raise errors.InternalError("a step that waits to be cancelled was told to go on")

    def passed(self, ended: int | None) -> None:
        """Marks a result that nobody needs any more as handed over."""
        self._take(ended)
        self._look()

    def _take(self, ended: int | None) -> None:
        if self._due and self._due[0] == ended:
            self._due.popleft()
        elif ended is not None and ended in self._due:
            self._due.remove(ended)

    # Waiting for a retry

    async def alone(self, seconds: float) -> bool:
        """Waits for `seconds`. Ends earlier and returns True if the run waits for nothing else, so
        that the run may leave its worker. If several calls wait, only the one that is due first
        returns True.
        """
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[bool] = loop.create_future()
        timer = loop.call_later(seconds, _resolve, waiting, False)
        self._backing_off.append((timer.when(), waiting))
        self._look()
        try:
            return await waiting
        finally:
            timer.cancel()
            self._backing_off = [w for w in self._backing_off if w[1] is not waiting]

    def is_alone(self) -> bool:
        """Whether nothing of the run is in progress except the calling code."""
        return not (self._open or self._asked or self._backing_off) and self._at_rest()

    def began(self) -> None:
        self._open += 1

    def over(self) -> None:
        self._open -= 1
        if self._backing_off:
            self._look()

    # Coming to rest

    def _look(self) -> None:
        if not self._looking and (self._asked or self._to_be_cancelled or self._backing_off):
            self._looking = True
            asyncio.get_running_loop().call_soon(self._hand_over, 0)

    def _hand_over(self, rounds: int) -> None:
        if rounds < ROUNDS_MAX and not self._at_rest():
            asyncio.get_running_loop().call_soon(self._hand_over, rounds + 1)
            return
        self._looking = False
        if self._due and (asked := self._asked.pop(self._due[0], None)) is not None:
            self._due.popleft()
            _resolve(asked, None)
            self._look()
        elif self._asked or self._to_be_cancelled:
            self._watch()
        elif self._backing_off and not self._open:
            _resolve(min(self._backing_off, key=lambda w: w[0])[1], True)

    def _at_rest(self) -> bool:
        """Whether no code of this run could continue immediately. The event loop's list of ready
        callbacks is private. On a loop without it, each result is handed over in a round of its
        own.
        """
        ready: Any = getattr(asyncio.get_running_loop(), "_ready", ())
        return not any(self._is_ours(handle) for handle in ready)

    def _is_ours(self, handle: asyncio.Handle) -> bool:
        if handle.cancelled():
            return False
        context = getattr(handle, "_context", None)
        scope = context.get(current) if context is not None else None
        return scope is not None and scope.context is self._context

    # Results that nobody claims

    def _watch(self) -> None:
        if self._watched is None:
            loop = asyncio.get_running_loop()
            due = self._due[0] if self._due else None
            self._watched = loop.call_later(STUCK_S, self._look_if_stuck, due, context=contextvars.Context())

    def _look_if_stuck(self, due: int | None) -> None:
        self._watched = None
        if not self._asked and not self._to_be_cancelled:
            return
        scheduled: Any = getattr(asyncio.get_running_loop(), "_scheduled", ())
        waits = self._open or not self._at_rest() or any(self._is_ours(handle) for handle in scheduled)
        if waits or due is None or not self._due or self._due[0] != due:
            self._watch()
            return
        what = "being cancelled again" if due in self._to_be_cancelled else "being asked for"
        error = errors.ReplayMismatchError(
            f"step {self._names.get(due, str(due))!r} was the run's number {due} to end, and nothing in "
            f"this replay leads to its {what}; a workflow must take the same way on every replay, and what "
            "it asks of the outside (timers, sockets, threads) belongs into steps"
        )
        stuck = [*self._asked.values(), *self._to_be_cancelled.values()]
        self._asked, self._to_be_cancelled = {}, {}
        for future in stuck:
            if not future.done():
                future.set_exception(error)


def _resolve(future: "asyncio.Future[Any]", value: Any) -> None:
    if not future.done():
        future.set_result(value)
