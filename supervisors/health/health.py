"""What the machine around a supervisor may want to know of it, and who is told. The loop itself tells: where that does not turn,
nothing says that all is well."""

from collections.abc import Mapping
from typing import Any, Protocol

from msgspec import Struct


class Health(Struct, frozen=True):
    """How the supervisor is, and since when nothing newer was heard (monotonic seconds)."""

    at: float
    ready: bool
    why_not: str | None
    counts: Mapping[str, Any]


class Listener(Protocol):
    def tell(self, health: Health) -> None: ...

    def stopping(self) -> None: ...

    def close(self) -> None: ...
