"""Algorithms that wait, written once for blocking and for async stores.

Code that waits, or that calls user code, is written as a coroutine that does all its waiting
through the interface `Ways`. A blocking store runs the coroutine to its end: with `Blocking`, no
await ever suspends. An async store awaits the coroutine: `Threads` executes each database call on a
thread. So the store works on any event loop, and on several loops one after another.
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

# An idle thread ends after this time.
IDLE_S = 2.0
# The interval of attempts to reach an unavailable database.
AWAY_S = 0.25
# How long a cancelled task waits for the outcome of its call.
LEAVE_S = 5.0


class Ways(Protocol):
    """The interface of waiting: for a database call, and for time to pass."""

    async def call(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R: ...

    async def claim(self, claim: Callable[[], R], undo: Callable[[R], object]) -> R:
        """Makes a call like `call`, whose result must not be lost. If the caller is cancelled,
        `undo` receives the result.
        """

    async def surely(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Makes a call like `call`, for cleanup. If the caller is cancelled, the cancellation takes
        effect after the call.
        """

    async def sleep(self, seconds: float) -> None: ...


class Blocking:
    """Waits in the calling thread."""

    async def call(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        return function(*args, **kwargs)

    async def claim(self, claim: Callable[[], R], undo: Callable[[R], object]) -> R:
        return claim()

    surely = call

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251 - never on an event loop


async def patiently(ways: Ways, patience_s: float, call: Callable[[], Coroutine[Any, Any, R]]) -> R:
    """Repeats the call while the database is unavailable, for at most `patience_s`. After that,
    raises the last error.
    """
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
    """Runs a coroutine that waits through `Blocking` to its end."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: R = end.value
        return result
    coroutine.close()
    raise errors.ValidationError(
        "a blocking store cannot wait for async code: give "
        "it plain functions, or use `await pgqrs.connect(…)`"
    )


class Threads:
    """Executes calls on threads. At most `count_max` calls execute at once, which is the number of
    connections.

    If no thread starts a call within `patience_s`, the call raises PgqrsConnectionError. The
    threads are daemons and end when they are idle. So an abandoned store keeps no thread, and no
    thread delays the process's exit.
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
            if not self._withdraw(job):  # the call has begun
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
                    f"no connection became free within {self._patience_s:g}s: all {self._count_max} are "
                    "busy; raise max_connections or connection_timeout_seconds, or do less at once"
                )
            )

    async def _leave(self, job: "_Job[R]", undo: Callable[[R], object] | None) -> None:
        """Waits for the end of a call whose caller was cancelled, so that the next call finds the
        database in a known state.
        """
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
        """Removes a job that no thread has started. Returns False if a thread has started it."""
        with self._changed:
            try:
                self._jobs.remove(job)
            except ValueError:
                return False
            return True

    def _work(self) -> None:
        while (job := self._next()) is not None:
            job.run()
            del job  # the job refers to the store, which may be waiting to be collected

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
    """A call and its outcome. `ended` belongs to the event loop, and is set and replaced only in
    the loop's thread.
    """

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
            with contextlib.suppress(errors.PgqrsError):  # the messages return when their lock expires
                late(self._results[0])
        with contextlib.suppress(RuntimeError):  # the event loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self._tell)

    def fail(self, error: BaseException) -> None:
        """Fails the call without executing it."""
        self.error, self.over = error, True
        self._tell()

    def outcome(self) -> R:
        if self.error is not None:
            raise self.error
        return self._results[0]

    def hand_over(self, undo: Callable[[R], object]) -> bool:
        """Makes the call's thread undo the result as soon as there is a result. Returns False if
        there is one already.
        """
        with self._lock:
            if not self.over:
                self._late = undo
            return not self.over

    async def wait_patiently(self) -> None:
        """Waits until the call is over, for at most LEAVE_S. The wait continues even if the task is
        cancelled again.
        """
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
