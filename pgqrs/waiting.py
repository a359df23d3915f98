"""One algorithm, two ways of waiting.

What waits, or calls back into the user's code, is written once, as a coroutine over `Ways`. A blocking store drives it
straight through: with `Blocking` no await ever suspends. An async store awaits it: `Threads` carries each call into the
database out on a thread, so it works on any event loop, and on several in turn.
"""

import asyncio
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from functools import partial
from typing import Any, Generic, ParamSpec, Protocol, TypeVar

from pgqrs import errors
from pgqrs.store.calls import Call

P = ParamSpec("P")
R = TypeVar("R")

IDLE_S = 2.0  # a thread with nothing to do ends after this long
LEAVE_S = 5.0  # how long a cancelled task waits to see what became of its call


class Ways(Protocol):
    """How to wait for a call into the database, and for time to pass."""

    async def call(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R: ...

    async def claim(self, claim: Callable[[], R], undo: Callable[[R], object]) -> R:
        """The same for a call whose result must not get lost: where its caller was cancelled, `undo` gets it."""

    async def sleep(self, seconds: float) -> None: ...


class Blocking:
    """In the calling thread."""

    async def call(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        return function(*args, **kwargs)

    async def claim(self, claim: Callable[[], R], undo: Callable[[R], object]) -> R:
        return claim()

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251 - driven straight through, in nobody's event loop


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

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def _done(self, function: Callable[[], R], undo: Callable[[R], object] | None) -> R:
        job = _Job(function)
        ended = _signal_of(job.future)
        self._submit(job)
        try:
            await asyncio.wait([ended], timeout=self._patience_s)
            if not ended.done():
                if job.future.cancel():
                    raise errors.PgqrsConnectionError(
                        f"no connection became free within {self._patience_s:g}s: all {self._count_max} are busy; "
                        "raise max_connections or connection_timeout_seconds, or do less at once"
                    )
                await ended
        except asyncio.CancelledError:
            if not job.future.cancel():  # it has begun
                await self._leave(job, ended, undo)
            raise
        return job.future.result()

    async def _leave(
        self, job: "_Job[R]", ended: "asyncio.Future[None]", undo: Callable[[R], object] | None
    ) -> None:
        """Waits for the end of a call that nobody waits for any more, so that the task behind it finds things settled."""
        if not ended.done():
            threading.Thread(target=job.call.leave, name="pgqrs-leave", daemon=True).start()
            await _patiently(ended)
        if undo is None:
            return
        if not job.future.done():
            job.future.add_done_callback(lambda f: None if f.exception() else undo(f.result()))
        elif job.future.exception() is None:
            undoing = _Job(partial(undo, job.future.result()))
            undone = _signal_of(undoing.future)
            self._submit(undoing)
            await _patiently(undone)

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
    def __init__(self, function: Callable[[], R]) -> None:
        self._function: Callable[[], R] | None = function
        self.future: Future[R] = Future()
        self.call = Call()

    def run(self) -> None:
        function, self._function = self._function, None
        if function is None or not self.future.set_running_or_notify_cancel():
            return
        try:
            with self.call.made():
                result = function()
        except BaseException as e:
            self.future.set_exception(e)
        else:
            self.future.set_result(result)


def _signal_of(future: "Future[Any]") -> "asyncio.Future[None]":
    """Done when the other is, in this event loop; carries nothing, and cancelling it cancels nothing."""
    loop = asyncio.get_running_loop()
    signal: asyncio.Future[None] = loop.create_future()

    def done() -> None:
        if not signal.done():
            signal.set_result(None)

    def tell(_: object) -> None:
        try:
            loop.call_soon_threadsafe(done)
        except RuntimeError:  # the loop is closed: nobody waits
            pass

    future.add_done_callback(tell)
    return signal


async def _patiently(ended: "asyncio.Future[None]") -> None:
    """Until it is done, for LEAVE_S at most, whatever else cancels us meanwhile."""
    until = time.monotonic() + LEAVE_S
    while not ended.done() and (left_s := until - time.monotonic()) > 0:
        try:
            await asyncio.wait([ended], timeout=left_s)
        except asyncio.CancelledError:
            continue
