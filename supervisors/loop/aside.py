"""The thread for all calls to the database that are neither a turn nor a renewal of the lease."""

import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from msgspec import Struct

from pgqrs import errors
from supervisors.loop.turns import Broken

T = TypeVar("T")


class Answer(Struct, frozen=True):
    """The result of a call, and the function that handles it in the loop."""

    then: Callable[[Any], None]
    found: Any


class Aside:
    """Executes one call at a time in its thread. After each addition to `news` the thread calls
    `wake`.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Callable[[Any], None]] | None] = (
            queue.SimpleQueue()
        )
        self.news: queue.SimpleQueue[Answer | Broken] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="pgqrs-aside", daemon=True)
        self._thread.start()

    def ask(self, call: Callable[[], T], then: Callable[[T | None], None]) -> None:
        """Lets the thread call `call`. The loop then calls `then` with the result, or with None if
        the database could not be reached or refused the call.
        """
        self._calls.put((call, then))

    def close(self, timeout_s: float) -> None:
        """Ends the thread when it has made all calls that were asked for, or after `timeout_s`."""
        self._calls.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (asked := self._calls.get()) is not None:
            call, then = asked
            try:
                self.news.put(Answer(then, call()))
            except errors.SchemaError as e:
                # Waiting does not help.
                self.news.put(Broken(e))
            except (errors.PgqrsConnectionError, errors.DatabaseError):
                self.news.put(Answer(then, None))
            except BaseException as e:
                self.news.put(Broken(e))
            self._wake()
