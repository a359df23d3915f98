"""Detects what a value loses in the database, by comparing it with what is read back from its JSON.

Plain JSON values (exactly dict, list, str, int, float, bool and None) lose nothing, even if the
annotation converts them: "/data" for a Path is intended. Any other value must be read back with the
same type and content. Exact conversions are allowed: a tuple as a list, bytearray as bytes, a numpy
number as a number, an IntEnum as its int if the annotation says so.
"""

import dataclasses
import datetime as dt
import enum
import functools
import sys
from collections.abc import Iterable
from decimal import Decimal
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import msgspec

LEAVES = frozenset({str, int, float, bool, type(None)})
_NO_ONE = frozenset[type]()


class Change(NamedTuple):
    """The first difference between two values. `path` holds the keys that lead to it."""

    path: tuple[object, ...]
    reason: str


def is_plain(value: object) -> bool:
    """Whether a value consists only of exact dicts with exact str keys, exact lists, and plain
    leaves.
    """
    if type(value) in LEAVES:
        return True
    waiting = [value]
    while waiting:
        part = waiting.pop()
        inner: Iterable[object]
        if type(part) is dict:
            for key in part:
                if type(key) is not str:
                    return False
            inner = part.values()
        elif type(part) is list:
            inner = part
        else:
            return False
        if len(part) > _MANY and set(map(type, inner)) <= LEAVES:
            continue
        for one in inner:
            if type(one) not in LEAVES:
                waiting.append(one)
    return True


# From this size on, checking the set of types first is faster.
_MANY = 16


def changed(value: object, again: object, strict: frozenset[type] = _NO_ONE) -> Change | None:
    """Returns the first part of `value` that differs in `again`, which was read from the value's
    JSON.

    `strict` holds plain types that are members of an ambiguous union. Converting one of them to
    another member counts as a difference.
    """
    return _Comparison(strict).changed(value, again)


Pairs = list[tuple[object, Any, Any]]


class _Comparison:
    def __init__(self, strict: frozenset[type] = _NO_ONE, exact: bool = False) -> None:
        """With `exact`, plain values are compared too. This is for values whose class defines their
        JSON.
        """
        self._strict = strict
        self._exact = exact
        self._skipped = _NO_ONE if strict or exact else LEAVES

    def changed(self, value: object, again: object) -> Change | None:
        waiting: list[tuple[Any, Any, Any]] = [(value, again, None)]
        while waiting:
            one, other, place = waiting.pop()
            found = self._compared(one, other)
            if isinstance(found, str):
                return Change(_path(place), found)
            if found:
                waiting += [(a, b, place if key is _HERE else (place, key)) for key, a, b in found]
        return None

    def _compared(self, value: Any, again: Any) -> Pairs | str | None:
        """Compares two values. If their parts are to be compared next, returns the parts (key,
        part, other part). If the values differ, returns a reason. If they are equal, returns None.
        """
        kind, other = type(value), type(again)
        if kind in LEAVES:
            return self._leaves(value, again, kind, other)
        if kind is other:
            return self._same_kind(value, again, kind)
        if kind in (list, tuple) and kind in self._strict:
            return _told_apart(kind, other)
        if kind in (list, tuple, set, frozenset, dict):
            return self._containers(value, again, kind, other)
        if isinstance(value, msgspec.Raw) or _converted(value, again, kind, other):
            return None
        if kind.__module__ == "numpy" and hasattr(value, "tolist"):
            plain = value.tolist()
            return _differ(kind, other) if type(plain) is kind else [(_HERE, plain, again)]
        return _differ(kind, other)

    def _leaves(self, value: Any, again: Any, kind: type, other: type) -> str | None:
        if kind is not other and kind in self._strict:
            return _told_apart(kind, other)
        if self._exact and not _equal(value, again):
            return f"a {_name(kind)} comes back as another value than it is"
        return None

    def _same_kind(self, value: Any, again: Any, kind: type) -> Pairs | str | None:
        if kind is dict:
            return self._dicts(value, again)
        if kind is list or kind is tuple:
            return self._in_order(value, again)
        if kind is set or kind is frozenset:
            return _members(value, again)
        if kind is dt.datetime:
            return _moments(value, again)
        if kind is dt.time and (value.tzinfo is None) is not (again.tzinfo is None):
            return (
                f"a datetime.time with the time zone {value.tzinfo} "
                "comes back without; it has no offset of its own"
            )
        if _is_model(kind):
            return None  # it was compared when it was encoded
        names = field_names(kind)
        if names is not None:
            return self._fields(value, again, names)
        return None if _equal(value, again) else f"a {_name(kind)} comes back with another content"

    def _in_order(self, value: Any, again: Any) -> Pairs | str:
        if len(value) != len(again):
            return f"its {len(value)} members come back as {len(again)}"
        both = enumerate(zip(value, again, strict=True))
        return [(i, a, b) for i, (a, b) in both if type(a) not in self._skipped]

    def _dicts(self, value: dict[Any, Any], again: dict[Any, Any]) -> Pairs | str:
        if len(value) != len(again):
            return "two of its keys are the same in JSON"
        pairs: Pairs = []
        for (key, part), (again_key, other) in zip(value.items(), again.items(), strict=True):
            if type(key) is not str:
                if type(key) not in LEAVES:
                    pairs.append((key, key, again_key))
                elif key != again_key or (type(key) is bool) is not (type(again_key) is bool):
                    return (
                        f"a key that is a {_name(type(key))} comes back as a {_name(type(again_key))}; "
                        f"annotate the keys (dict[{_name(type(key))}, …]), or make them text"
                    )
            if type(part) not in self._skipped:
                pairs.append((key, part, other))
        return pairs

    def _containers(self, value: Any, again: Any, kind: type, other: type) -> Pairs | str | None:
        if kind is dict:
            return _as_object(value, again, other)
        if kind in (list, tuple):
            names = field_names(other)
            if other is list or other is tuple or (issubclass(other, tuple) and names is not None):
                return self._in_order(value, again)
            if other in (set, frozenset):
                return _members([one for one in value if type(one) not in LEAVES], again)
            if names is not None and len(names) >= len(value):
                return [(n, a, getattr(again, n, None)) for n, a in zip(names, value, strict=False)]
        if kind in (set, frozenset) and other in (set, frozenset):
            return _members(value, again)
        return _differ(kind, other)

    def _fields(self, value: Any, again: Any, names: tuple[str, ...]) -> Pairs | str:
        attributes = getattr(value, "__dict__", None)
        if attributes and not attributes.keys() <= set(names):
            kept = getattr(again, "__dict__", {})
            for name in attributes.keys() - set(names) - kept.keys():
                if not isinstance(getattr(type(value), name, None), functools.cached_property):
                    return f"its attribute {name!r} is no field of {_name(type(value))} and would be lost"
        pairs: Pairs = []
        for name in names:
            part, other = getattr(value, name, None), getattr(again, name, None)
            if type(part) not in LEAVES:
                pairs.append((name, part, other))
            elif type(part) is type(other) and part != other:
                return f"its field {name!r} comes back as another value; does __post_init__ change it?"
            elif self._skipped is not LEAVES:
                pairs.append((name, part, other))
        return pairs


_HERE = object()  # a key that adds nothing to a path


def _path(place: Any) -> tuple[object, ...]:
    keys: list[object] = []
    while place is not None:
        place, key = place
        keys.append(key)
    return tuple(reversed(keys))


def _members(value: Iterable[Any], again: Iterable[Any]) -> Pairs | str:
    found = {one: one for one in again}
    pairs: Pairs = []
    for one in value:
        if one not in found:
            return f"a {_name(type(one))} in it comes back as something else"
        pairs.append((one, one, found[one]))
    return pairs


def _as_object(value: dict[Any, Any], again: Any, other: type) -> Pairs | str | None:
    """Compares a dict with the dataclass or model that it was read as. Parts that are not plain
    must be equal.
    """
    if field_names(other) is None and not _is_model(other):
        return _differ(dict, other)
    parts = [(k, v) for k, v in value.items() if not is_plain(v)]
    return [(k, v, getattr(again, k)) for k, v in parts if isinstance(k, str) and hasattr(again, k)]


def _moments(value: dt.datetime, again: dt.datetime) -> str | None:
    if value.replace(tzinfo=None) != again.replace(tzinfo=None) or value.fold != again.fold:
        return "a datetime comes back as another time of day (is its fold meant?)"
    zone, other = value.tzinfo, again.tzinfo
    if isinstance(zone, ZoneInfo) and isinstance(other, ZoneInfo) and zone.key == other.key:
        return None
    fixed = zone is None or type(zone) is dt.timezone or (value.tzname() == "UTC" and not value.utcoffset())
    if fixed and not isinstance(zone, ZoneInfo) and value.utcoffset() == again.utcoffset():
        return None
    where = "in a pydantic model, which does not keep it; " if isinstance(zone, ZoneInfo) else ""
    return (
        f"a datetime with the time zone {zone} comes back with {other}: "
        f"{where}only a zone of zoneinfo in an argument or a result that is "
        "annotated as datetime is kept; else use .astimezone(datetime.timezone.utc)"
    )


@functools.lru_cache(maxsize=1024)
def field_names(kind: type) -> tuple[str, ...] | None:
    """Returns the field names of a dataclass, a msgspec Struct, an attrs class or a NamedTuple.
    Returns None for any other class.
    """
    if issubclass(kind, msgspec.Struct):
        return kind.__struct_fields__
    if dataclasses.is_dataclass(kind):
        return tuple(f.name for f in dataclasses.fields(kind))
    attributes = getattr(kind, "__attrs_attrs__", None)
    if attributes is not None:
        return tuple(a.name for a in attributes)
    if issubclass(kind, tuple) and hasattr(kind, "_fields"):
        return tuple(kind._fields)
    return None


def _converted(value: Any, again: Any, kind: type, other: type) -> bool:
    """Whether a value was read back as another type without loss."""
    if isinstance(value, enum.Enum):
        return other in LEAVES and isinstance(value, other) and _equal(value, again)
    if kind in _BYTES and other in _BYTES:
        return bytes(value) == bytes(again)
    if (
        isinstance(value, dt.datetime) and other is _TIMES[0]
    ):  # pandas.Timestamp, and freezegun's type in tests
        return value == again and _moments(exact_time(value), again) is None
    if isinstance(value, dt.date | dt.time | dt.timedelta) and other in _TIMES[1:]:
        return issubclass(kind, other) and _equal(value, again)
    if kind.__module__ == "numpy" and other in LEAVES and getattr(value, "shape", None) == ():
        return _equal(value.item(), again)
    return False


_BYTES = (bytes, bytearray, memoryview)
_TIMES: tuple[type, ...] = (dt.datetime, dt.date, dt.time, dt.timedelta)


def exact_time(value: Any) -> Any:
    """Converts a time of a subclass, such as pandas.Timestamp, to Python's own type. Raises
    ValueError if the conversion is not exact.
    """
    if value != value:
        raise ValueError("NaT is no JSON value; use None")
    if getattr(value, "nanosecond", 0) or getattr(value, "nanoseconds", 0):
        raise ValueError(
            f"a {_name(type(value))} with nanoseconds is no JSON "
            "value; round it (.round('us')), or use its .value"
        )
    if isinstance(value, dt.datetime):
        date, time = (value.year, value.month, value.day), (value.hour, value.minute, value.second)
        return dt.datetime(*date, *time, value.microsecond, tzinfo=value.tzinfo, fold=value.fold)
    if isinstance(value, dt.date):
        return dt.date(value.year, value.month, value.day)
    if isinstance(value, dt.time):
        return dt.time(
            value.hour, value.minute, value.second, value.microsecond, value.tzinfo, fold=value.fold
        )
    return dt.timedelta(value.days, value.seconds, value.microseconds)


def _equal(value: Any, again: Any) -> bool:
    if isinstance(value, Decimal):
        return str(value) == str(again)
    try:
        return bool(value == again)
    except Exception:
        return False


# pydantic


def model_changed(model: Any, again: Any) -> Change | None:
    """Returns the first difference between a pydantic model and the one that was read from its JSON."""
    compare = _Comparison(exact=True)
    fields, read = vars(model), vars(again)
    for name in type(model).model_fields:
        found = compare.changed(fields.get(name), read.get(name))
        if found is not None:
            reason = f"{found.reason}; is it excluded, or changed by a serializer or validator of the model?"
            if "Secret" in type(fields.get(name)).__name__:
                reason = (
                    "a secret is not written into the database; pass the name under which a step finds it, "
                    "or, if it may be stored, its get_secret_value()"
                )
            return Change((name, *found.path), reason)
    more = compare.changed(model.__pydantic_extra__, again.__pydantic_extra__)
    if more is not None:
        return more
    private, read = model.__pydantic_private__ or {}, again.__pydantic_private__ or {}
    for name, part in private.items():
        # Objects that are compared by identity only, such as a lock, are created anew by each model.
        by_identity: bool = getattr(type(part), "__eq__", None) is object.__eq__
        if not by_identity and not _equal(part, read.get(name)):
            return Change((name,), "a private attribute of a pydantic model is not stored; make it a field")
    return None


def _is_model(kind: type) -> bool:
    model = getattr(sys.modules.get("pydantic.main"), "BaseModel", None)
    return model is not None and issubclass(kind, model)


# Texts


def _name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _told_apart(kind: type, other: type) -> str:
    return (
        f"a {_name(kind)} comes back as a {_name(other)}, for JSON does not tell the members of the union "
        "apart; annotate one type, or write the union so that their JSON differs"
    )


def _differ(kind: type, other: type) -> str:
    if issubclass(kind, other) and other is not object:
        way = f"annotate it as {kind.__qualname__}"
        if other in (dict, list, str, int, float, bytes, set, tuple):
            way = f"pass {other.__name__}(…) of it"
        return f"a {_name(kind)} comes back as a {_name(other)} without what it has beyond that; {way}"
    if issubclass(kind, enum.Enum):
        return (
            f"a {_name(kind)} comes back as a {_name(other)}; "
            f"annotate it as {kind.__qualname__}, or pass its .value"
        )
    return (
        f"a {_name(kind)} comes back as a {_name(other)}; annotate it as "
        f"{kind.__qualname__}, or convert it to what the annotation says"
    )
