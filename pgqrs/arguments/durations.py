"""Durations as users write them: seconds, a timedelta, or text such as "10m"."""

import math
import re
from datetime import timedelta

from pgqrs.errors import ValidationError
from pgqrs.model.bounds import DURATION_S_MAX

Duration = float | timedelta | str


_UNITS = {
    "ms": 0.001, "msec": 0.001, "millisecond": 0.001, "milliseconds": 0.001,
    "s": 1.0, "sec": 1.0, "secs": 1.0, "second": 1.0, "seconds": 1.0,
    "m": 60.0, "min": 60.0, "mins": 60.0, "minute": 60.0, "minutes": 60.0,
    "h": 3600.0, "hr": 3600.0, "hrs": 3600.0, "hour": 3600.0, "hours": 3600.0,
    "d": 86_400.0, "day": 86_400.0, "days": 86_400.0,
    "w": 604_800.0, "week": 604_800.0, "weeks": 604_800.0,
}  # fmt: skip
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]+)[\s,]*", re.ASCII)
_NUMBER = re.compile(r"\d+(?:\.\d+)?", re.ASCII)


def seconds(value: float | timedelta | str) -> float:
    """Returns a duration in seconds, 0 or more. Text is a number with a unit ("500ms", "1h30m", "2
    days") or a number of seconds ("90"). Raises ValidationError for a value that is no duration, or
    that is negative, not finite, or over a hundred years.
    """
    found = _read(value)
    if found is None or not 0 <= found <= DURATION_S_MAX:
        raise ValidationError(
            f"{_shown(value)} is no duration: give seconds (0 to "
            f"{DURATION_S_MAX:.0f}), a timedelta, or text such as "
            '"500ms", "1.5s", "10m", "1h30m" or "2 days"'
        )
    return found


_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.ASCII)


def size(value: int | str) -> int:
    """Returns a size in bytes, 1 or more. Accepts a whole number, or text such as "512 MB" (10**6)
    or "2 GiB" (2**30). Raises ValidationError.
    """
    found: float | None = None
    if isinstance(value, int) and not isinstance(value, bool):
        found = value if abs(value) < 2**63 else None
    elif isinstance(value, str) and (m := _SIZE.fullmatch(value.strip().lower())):
        found = float(m[1]) * (1024 if m[3] else 1000) ** " kmgt".index(m[2] or " ")
    if found is None or not 1 <= found < 2**63:
        raise ValidationError(f'{_shown(value)} is no size: give bytes, or text such as "512 MB" or "2 GiB"')
    return int(found)


def text(seconds: float) -> str:
    """Returns a duration for people, in its two largest units: "250ms", "1.5s", "1h 30m"."""
    if not math.isfinite(seconds) or seconds < 0:
        return f"{seconds:g}s"
    if seconds < 1e-6:
        return "0s"
    if seconds < 0.9995:
        return f"{seconds * 1000:.3g}ms"
    if seconds < 59.95:
        return f"{round(seconds, 1):g}s"
    rest, parts = round(seconds), []
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, size)
        parts.append((count, unit))
    first = next(i for i, (count, _) in enumerate(parts) if count)
    return " ".join(f"{count}{unit}" for count, unit in parts[first : first + 2] if count)


def _read(value: object) -> float | None:
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, int | float) and not isinstance(value, bool):
        # An integer may be too large for a float.
        return float(value) if abs(value) <= DURATION_S_MAX else math.inf
    if isinstance(value, str):
        return _parse(value.strip().lower())
    return None


def _parse(written: str) -> float | None:
    if _NUMBER.fullmatch(written):
        return float(written)
    total, at = 0.0, 0
    while at < len(written):
        part = _PART.match(written, at)
        if part is None or part[2] not in _UNITS:
            return None
        total += float(part[1]) * _UNITS[part[2]]
        at = part.end()
    return total if written else None


def _shown(value: object) -> str:
    # Python refuses to print a very long integer.
    if isinstance(value, int):
        return str(value) if abs(value) < 10**80 else "a very large integer"
    shown = repr(value) if isinstance(value, str | float | timedelta | None) else type(value).__name__
    return shown if len(shown) <= 80 else shown[:80] + "…"
