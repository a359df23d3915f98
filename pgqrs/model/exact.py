"""Encodes values as JSON that keeps their type, for the parts of a recorded exception.

Values that JSON can represent are kept as they are. Any other value becomes an object with one key,
`{"$": [kind, content]}`. So a tuple is read back as a tuple, and bytes as bytes. If a value cannot
be recorded, it is read back as a `NotRecorded`, which shows the original value and refuses any
other use.
"""

import base64
import datetime as dt
import enum
import math
import re
import uuid
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any, NoReturn
from zoneinfo import ZoneInfo

# Limits one text or one bytes value.
TEXT_BYTES_MAX = 4 * 1024
# Limits the text that replaces a value that is not recorded.
SHOWN_BYTES_MAX = 256
DEPTH_MAX = 8
# How much of the budget each value uses, besides its text.
_NODE_BYTES = 8

_TAG = "$"


class NotRecorded:
    """Takes the place of a value that the record of an exception could not hold."""

    def __init__(self, kind: str, shown: str, text: str) -> None:
        self.__kind = kind
        self.__shown = shown
        self.__text = text

    def __repr__(self) -> str:
        return self.__shown

    def __str__(self) -> str:
        return self.__text

    def __getattr__(self, name: str) -> NoReturn:
        # This is an AttributeError so that hasattr() and getattr(…, default) work as usual.
        raise AttributeError(f"{name!r} is not known: {self._why()}")

    def __bool__(self) -> NoReturn:
        raise TypeError(self._why())

    def _why(self) -> str:
        return (
            f"this part of the exception was a {self.__kind}, which is not recorded; "
            "give the exception what is needed of it as text or numbers"
        )

    def _parts(self) -> list[str]:
        return [self.__kind, self.__shown, self.__text]


class Recorder:
    """Converts values for one record. All values together take about `budget_bytes`."""

    def __init__(self, budget_bytes: int, of_exception: Callable[[BaseException], Any]) -> None:
        self.left_bytes = budget_bytes
        self._of_exception = of_exception

    def plain(self, value: Any, depth: int = DEPTH_MAX) -> Any:
        """Returns the value as JSON. If the value cannot be recorded, the JSON says that it is
        lost. Never raises.
        """
        try:
            if self.left_bytes <= 0 or depth <= 0:
                return self._lost(value)
            self.left_bytes -= _NODE_BYTES
            return self._plain(value, depth)
        except Exception:  # raised by a property, a __len__ or a tzinfo of the value's class
            return self._lost(value)

    def _plain(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if value is None or kind is bool:
            return value
        if kind is int:
            # This raises beyond Python's limit of 4,300 digits. Such a number is recorded as lost.
            self.left_bytes -= len(str(value))
            return value
        if kind is float:
            return value if _is_plain_float(value) else _tagged("float", repr(value))
        if kind is str:
            return self._text(value)
        if kind is bytes or kind is bytearray:
            cut = _cut_bytes(bytes(value))
            self.left_bytes -= len(cut)
            return _tagged(kind.__name__, base64.b64encode(cut).decode())
        if kind in (list, tuple, set, frozenset):
            return self._sequence(value, depth)
        if kind is dict:
            return self._dict(value, depth)
        if kind is dt.datetime:
            return self._moment(value)
        if kind in _TEXTUAL:
            self.left_bytes -= len(str(value))
            return _tagged(_TEXTUAL[kind], value.isoformat() if hasattr(value, "isoformat") else str(value))
        if kind is dt.timedelta:
            return _tagged("timedelta", [value.days, value.seconds, value.microseconds])
        if isinstance(value, PurePath) and kind.__module__.partition(".")[0] == "pathlib":
            return _tagged("path", [kind.__name__, self._text(str(value))])
        if isinstance(value, enum.Enum):
            named = _tagged("enum", [f"{kind.__module__}.{kind.__qualname__}", value.name])
            return (
                named
                if isinstance(value.name, str) and value.name in kind._member_map_
                else self._lost(value)
            )
        if isinstance(value, BaseException):
            told = self._of_exception(value)
            return self._lost(value) if told is None else _tagged("error", told)
        if kind.__module__ == "numpy" and hasattr(value, "item") and getattr(value, "shape", None) == ():
            return self._lost(value) if type(value.item()) is kind else self._plain(value.item(), depth)
        return self._lost(value)

    def _moment(self, value: dt.datetime) -> Any:
        zone = value.tzinfo
        if isinstance(zone, ZoneInfo) and zone.key:
            return _tagged("zoned", [value.replace(tzinfo=None).isoformat(), zone.key, value.fold])
        if zone is None or type(zone) is dt.timezone:
            return _tagged("datetime", value.isoformat())
        return self._lost(value)

    def _text(self, value: str) -> Any:
        cut = cut_text(value, TEXT_BYTES_MAX)
        self.left_bytes -= len(cut)
        if "\0" in cut or _SURROGATE.search(cut):  # jsonb refuses both
            return _tagged("str", base64.b64encode(cut.encode("utf-8", "surrogatepass")).decode())
        return cut

    def _sequence(self, value: Any, depth: int) -> Any:
        if len(value) * _NODE_BYTES > self.left_bytes:
            return self._lost(value)
        parts = [self.plain(part, depth - 1) for part in value]
        return parts if type(value) is list else _tagged(type(value).__name__, parts)

    def _dict(self, value: dict[Any, Any], depth: int) -> Any:
        if len(value) * 2 * _NODE_BYTES > self.left_bytes:
            return self._lost(value)
        if _TAG not in value and all(type(k) is str and k == clean(k, TEXT_BYTES_MAX) for k in value):
            self.left_bytes -= sum(map(len, value))
            return {k: self.plain(v, depth - 1) for k, v in value.items()}
        return _tagged(
            "dict", [[self.plain(k, depth - 1), self.plain(v, depth - 1)] for k, v in value.items()]
        )

    def _lost(self, value: Any) -> Any:
        if isinstance(value, NotRecorded):
            return _tagged("lost", value._parts())
        kind = type(value)
        shown, text = _shown(repr, value), _shown(str, value)
        self.left_bytes -= len(shown)
        return _tagged(
            "lost", [clean(f"{kind.__module__}.{kind.__qualname__}", SHOWN_BYTES_MAX), shown, text]
        )


def restored(
    plain: Any,
    find: Callable[[str], object],
    rebuilt: Callable[[Any], BaseException],
    depth: int = 4 * DEPTH_MAX,
) -> Any:
    """Returns the value that a recorder encoded. `find` returns a loaded class by its name. Raises
    an exception for JSON of another form.
    """
    if depth <= 0:
        raise ValueError("nested too deeply")

    def inner(part: Any) -> Any:
        return restored(part, find, rebuilt, depth - 1)

    if isinstance(plain, list):
        return [inner(part) for part in plain]
    if not isinstance(plain, dict):
        return plain
    if plain.keys() != {_TAG}:
        return {k: inner(v) for k, v in plain.items()}
    kind, content = plain[_TAG]
    match kind:
        case "lost":
            name, shown, text = content
            return NotRecorded(str(name), str(shown), str(text))
        case "float":
            return float(content)
        case "str":
            return base64.b64decode(content).decode("utf-8", "surrogatepass")
        case "bytes" | "bytearray":
            return {"bytes": bytes, "bytearray": bytearray}[kind](base64.b64decode(content))
        case "tuple" | "set" | "frozenset":
            return {"tuple": tuple, "set": set, "frozenset": frozenset}[kind](inner(content))
        case "dict":
            return {inner(k): inner(v) for k, v in content}
        case "zoned":
            local, zone, fold = content
            return dt.datetime.fromisoformat(local).replace(tzinfo=ZoneInfo(zone), fold=fold)
        case "timedelta":
            return dt.timedelta(*content)
        case "path":
            return _PATHS[content[0]](inner(content[1]))
        case "enum":
            found = find(content[0])
            if isinstance(found, enum.EnumMeta) and content[1] in found._member_map_:
                return found._member_map_[content[1]]
            return NotRecorded(str(content[0]), f"<{content[0]}.{content[1]}>", f"{content[0]}.{content[1]}")
        case "error":
            return rebuilt(content)
        case _:
            return _READ[kind](content)


_SURROGATE = re.compile("[\ud800-\udfff]")
_TEXTUAL: dict[type, str] = {
    dt.date: "date",
    dt.time: "time",
    Decimal: "decimal",
    uuid.UUID: "uuid",
    complex: "complex",
}
_READ: dict[str, Callable[[Any], Any]] = {
    "datetime": dt.datetime.fromisoformat,
    "date": dt.date.fromisoformat,
    "time": dt.time.fromisoformat,
    "decimal": Decimal,
    "uuid": uuid.UUID,
    "complex": complex,
}
_PATHS: dict[str, Callable[[Any], PurePath]] = {
    "PosixPath": Path,
    "PurePosixPath": PurePosixPath,
    "PureWindowsPath": PureWindowsPath,
    "WindowsPath": PureWindowsPath,
}


def clean(text: str, bytes_max: int) -> str:
    """Replaces the characters that JSON or jsonb refuses, and cuts the text to `bytes_max`."""
    return cut_text(_SURROGATE.sub("\ufffd", text.replace("\0", "\u2400")), bytes_max)


def cut_text(text: str, bytes_max: int) -> str:
    """Cuts a text to `bytes_max` bytes. Removes its middle, because the beginning and the end are
    the most informative.
    """
    raw = text.encode("utf-8", "surrogatepass")
    if len(raw) <= bytes_max:
        return text
    marker = _marker(len(raw), bytes_max) if bytes_max > 1024 else "…"
    half = (bytes_max - len(marker.encode())) // 2
    return raw[:half].decode(errors="ignore") + marker + raw[-half:].decode(errors="ignore")


def _cut_bytes(raw: bytes) -> bytes:
    if len(raw) <= TEXT_BYTES_MAX:
        return raw
    marker = _marker(len(raw), TEXT_BYTES_MAX).encode()
    half = (TEXT_BYTES_MAX - len(marker)) // 2
    return raw[:half] + marker + raw[-half:]


def _marker(size: int, bytes_max: int) -> str:
    return f"\n… {size - bytes_max:,} bytes left out …\n"


def _tagged(kind: str, content: Any) -> Any:
    return {_TAG: [kind, content]}


def _is_plain_float(value: float) -> bool:
    # jsonb stores 1e+23 as an integer, and -0.0 without its sign.
    return math.isfinite(value) and "e" not in repr(value) and (value != 0 or math.copysign(1, value) > 0)


def _shown(show: Callable[[Any], str], value: Any) -> str:
    try:
        return clean(show(value), SHOWN_BYTES_MAX)
    except Exception:
        return f"<a {type(value).__qualname__}>"
