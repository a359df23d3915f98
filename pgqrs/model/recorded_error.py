"""The recorded error of a step or a run: one JSON object, which is written and read here."""

from typing import Any

import msgspec
from msgspec import Struct


class RecordedError(Struct, frozen=True):
    """The fields that every recorded error has. `errors.describe` adds the fields that
    `errors.rebuild` needs to build the exception again.

    - code: NON_RETRYABLE, TIMEOUT, MEMORY, CRASHED, CANCELLED, or the code of a TransientStepError
    - type: "module.qualname" of the exception; empty if a client of 0.15 or a caller recorded the
      error
    - message: may have many lines
    - whole: the complete record, if it is an object
    """

    code: str = ""
    type: str = ""
    message: str = ""
    is_transient: bool = False
    traceback: str = ""
    whole: dict[str, Any] | None = None

    @classmethod
    def read(cls, told: object) -> "RecordedError":
        """Reads raw JSON or its decoded form. If a record is not an object, the record becomes the
        message. Never raises, because another program may have written the row.
        """
        if isinstance(told, bytes):
            told = _decoded(told)
        if not isinstance(told, dict):
            return cls(message="" if told is None else str(told))
        code, kind, message, trace = (_text(told.get(k)) for k in ("code", "type", "message", "traceback"))
        return cls(code, kind, message, bool(told.get("is_transient")), trace, told)

    def encode(self) -> bytes:
        """Returns raw JSON of an error that pgqrs itself records. (The record of an exception comes
        from `errors.describe`.)
        """
        told: dict[str, Any] = {
            "code": self.code,
            "is_transient": self.is_transient,
            "type": self.type,
            "message": self.message,
            "args": [self.message],
        }
        if self.traceback:
            told["traceback"] = self.traceback
        return msgspec.json.encode(told)

    @property
    def name(self) -> str:
        """The class of the exception without its module, or the code if no class is recorded."""
        return self.type.rpartition(".")[2] or self.code

    @property
    def line(self) -> str:
        """The class and the message, for people."""
        return f"{self.name}: {self.message}" if self.name else self.message


def _decoded(raw: bytes) -> object:
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return raw.decode(errors="replace")


def _text(value: object) -> str:
    return "" if value is None else str(value)
