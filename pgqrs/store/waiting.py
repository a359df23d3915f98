"""One algorithm, two ways of waiting.

What waits, or calls back into the user's code, is written once, as a coroutine over `Ways`. A blocking store drives it
straight through: with `Blocking` no await ever suspends. An async store awaits it: `Threads` carries each call into the
database out on a thread, so it works on any event loop, and on several in turn.
"""

import asyncio
import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Generic, ParamSpec, Protocol, TypeVar

from pgqrs import errors
from pgqrs.store.calls import Call

P = ParamSpec("P")
R = TypeVar("R")

IDLE_S = 2.0  # a thread with nothing to do ends after this long
AWAY_S = 0.25  # between looks whether the database is back
LEAVE_S = 5.0  # how long a cancelled task waits to see what became of its call


class Ways(Protocol):
    """How to wait for a call into the database, and for time to pass."""

    async def call(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R: ...

    async def claim(self, claim: Callable[[], R], undo: Callable[[R], object]) -> R:
        """The same for a call whose result must not get lost: where its caller was cancelled, `undo` gets it."""

    async def surely(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """The same for a call that puts things in order: whoever is cancelled meanwhile hears of it when that is done."""

    async def sleep(self, seconds: float) -> None: ...


class Blocking:
    """In the calling thread."""

    async def call(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        return function(*args, **kwargs)

    async def claim(self, claim: Callable[[], R], undo: Callable[[R], object]) -> R:
        return claim()

    surely = call

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251 - driven straight through, in nobody's event loop


async def patiently(ways: Ways, patience_s: float, call: Callable[[], Coroutine[Any, Any, R]]) -> R:
    """The call, again and again while the database is away, for so long at most: then it raises what the last one did."""
    until: float | None = None
    while True:
        try:
            return await call()
        except errors.SchemaError:
            raise
        except errors.PgqrsConnectionError:
            now = time.monotonic()
            until = now + patience_s if until is None else until
            if now >= until:
                raise
        await ways.sleep(AWAY_S)


def drive(coroutine: Coroutine[Any, Any, R]) -> R:
    """Runs a coroutine over `Blocking` to its end."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: R = end.value
        return result
    coroutine.close()
    raise errors.ValidationError(
        "a blocking store cannot wait for async code: give it plain functions, or use `await pgqrs.connect(…)`"
    )


class Threads:
    """On threads of our own, at most `count_max` at once: as many as there are connections.

    A call that none of them takes up within `patience_s` fails with PgqrsConnectionError. The threads are daemons and end
    when idle: an abandoned store keeps none, and none keeps the process from exiting.
    """

    def __init__(self, count_max: int, patience_s: float) -> None:
        self._count_max = count_max
        self._patience_s = patience_s
        self._jobs: deque[_Job[Any]] = deque()
        self._changed = threading.Condition()
        self._pid = os.getpid()
        self._count = 0
        self._idle = 0

    async def call(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        return await self._done(partial(function, *args, **kwargs), None)

    async def claim(self, claim: Callable[[], R], undo: Callable[[R], object]) -> R:
        return await self._done(claim, undo)

    async def surely(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        job = _Job(partial(function, *args, **kwargs), asyncio.get_running_loop())
        try:
            await self._wait_for(job)
        except asyncio.CancelledError:
            await job.wait_patiently()
            raise
        return job.outcome()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def _done(self, function: Callable[[], R], undo: Callable[[R], object] | None) -> R:
        job = _Job(function, asyncio.get_running_loop())
        try:
            await self._wait_for(job)
        except asyncio.CancelledError:
            if not self._withdraw(job):  # it has begun
                await self._leave(job, undo)
            raise
        return job.outcome()

    async def _wait_for(self, job: "_Job[Any]") -> None:
        self._submit(job)
        patience = asyncio.get_running_loop().call_later(self._patience_s, self._give_up, job)
        try:
            await job.ended
        finally:
            patience.cancel()

    def _give_up(self, job: "_Job[Any]") -> None:
        if self._withdraw(job):
            job.fail(
                errors.PgqrsConnectionError(
                    f"no connection became free within {self._patience_s:g}s: all {self._count_max} are busy; "
                    "raise max_connections or connection_timeout_seconds, or do less at once"
                )
            )

    async def _leave(self, job: "_Job[R]", undo: Callable[[R], object] | None) -> None:
        """Waits for the end of a call that nobody waits for any more, so that the task behind it finds things settled."""
        if not job.over:
            job.call.leave()
            threading.Thread(target=job.call.interrupt, name="pgqrs-leave", daemon=True).start()
            await job.wait_patiently()
        if undo is None or job.hand_over(undo) or job.error is not None:
            return
        undoing: _Job[object] = _Job(partial(undo, job.outcome()), asyncio.get_running_loop())
        self._submit(undoing)
        await undoing.wait_patiently()

    def _submit(self, job: "_Job[Any]") -> None:
        if os.getpid() != self._pid:
            raise errors.InternalError(
                "this store was opened before a fork; connect again in the child process"
            )
        with self._changed:
            self._jobs.append(job)
            if self._idle >= len(self._jobs):
                self._changed.notify()
            elif self._count < self._count_max:
                self._count += 1
                threading.Thread(target=self._work, name="pgqrs-call", daemon=True).start()

    def _withdraw(self, job: "_Job[Any]") -> bool:
        """False when a thread has taken it up."""
        with self._changed:
            try:
                self._jobs.remove(job)
            except ValueError:
                return False
            return True

    def _work(self) -> None:
        while (job := self._next()) is not None:
            job.run()
            del job  # with what it holds: the store behind it may be waiting to be collected

    def _next(self) -> "_Job[Any] | None":
        with self._changed:
            if not self._jobs:
                self._idle += 1
                self._changed.wait_for(lambda: bool(self._jobs), timeout=IDLE_S)
                self._idle -= 1
                if not self._jobs:
                    self._count -= 1
                    return None
            return self._jobs.popleft()


class _Job(Generic[R]):
    """A call and what became of it. `ended` belongs to the event loop and is done, and replaced, in its thread alone."""

    def __init__(self, function: Callable[[], R], loop: asyncio.AbstractEventLoop) -> None:
        self._function: Callable[[], R] | None = function
        self._loop = loop
        self._lock = threading.Lock()
        self._late: Callable[[R], object] | None = None
        self._results: list[R] = []
        self.over = False
        self.error: BaseException | None = None
        self.call = Call()
        self.ended: asyncio.Future[None] = loop.create_future()

    def run(self) -> None:
        function, self._function = self._function, None
        assert function is not None
        try:
            with self.call.made():
                self._results.append(function())
        except BaseException as e:
            self.error = e
        with self._lock:
            self.over = True
            late = self._late
        if late is not None and self._results:
            with contextlib.suppress(errors.PgqrsError):  # it comes back when its time is over
                late(self._results[0])
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self._tell)

    def fail(self, error: BaseException) -> None:
        """Instead of being run."""
        self.error, self.over = error, True
        self._tell()

    def outcome(self) -> R:
        if self.error is not None:
            raise self.error
        return self._results[0]

    def hand_over(self, undo: Callable[[R], object]) -> bool:
        """Leaves it to the call's thread to undo the result, as soon as there is one. False when there is already."""
        with self._lock:
            if not self.over:
                self._late = undo
            return not self.over

    async def wait_patiently(self) -> None:
        """Until it is over, for LEAVE_S at most, whatever else cancels us meanwhile."""
        until = time.monotonic() + LEAVE_S
        while not self.over and (left_s := until - time.monotonic()) > 0:
            if self.ended.done():
                self.ended = self._loop.create_future()
            try:
                await asyncio.wait([self.ended], timeout=left_s)
            except asyncio.CancelledError:
                continue

    def _tell(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)
