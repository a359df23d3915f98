"""The reported state of a supervisor, and the interface of the listeners that get it. The loop
makes the reports itself, so a loop that hangs cannot report that all is well.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from msgspec import Struct


class Health(Struct, frozen=True):
    """The state of the supervisor at the time `at` (monotonic seconds)."""

    at: float
    ready: bool
    why_not: str | None
    counts: Mapping[str, Any]


class Listener(Protocol):
    def tell(self, health: Health) -> None: ...

    def stopping(self) -> None: ...

    def close(self) -> None: ...
