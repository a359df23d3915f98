"""Timestamps with a time zone as JSON: 2024-03-30T12:00:00+01:00[Europe/Berlin], as in RFC 9557.

An offset alone is not enough. One day after that timestamp it is 12:00 in Berlin, but less than 24
hours have passed. msgspec writes and reads the part before the bracket. This module adds the rest,
only for values that contain such a timestamp.
"""

import re
from collections.abc import Callable
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
from msgspec import inspect

_MOMENT_BYTES_MIN = len('"2024-01-01T00:00:00Z"')
_OFFSET = re.compile(rb':\d\d"')
_WRITTEN = re.compile(rb'\[[A-Za-z][\w+/-]*\]"')
_TEXT = re.compile(r"(\d{4}-\d\d-\d\dT[\d:.]+(?:Z|[+-][\d:]+))\[([A-Za-z][\w+/-]*)\]")


def may_hold_a_moment(raw: bytes) -> bool:
    """Whether JSON written by msgspec may contain a timestamp with an offset."""
    return len(raw) >= _MOMENT_BYTES_MIN and (b'Z"' in raw or _OFFSET.search(raw) is not None)


def written(plain: object) -> tuple[object, bool]:
    """Replaces each timestamp with a zone, in plain containers, by text. Also returns whether there
    was any.
    """
    found = False

    def walk(part: Any) -> Any:
        nonlocal found
        if isinstance(part, datetime):
            if isinstance(part.tzinfo, ZoneInfo) and part.tzinfo.key:
                found = True
                return f"{part.isoformat()}[{part.tzinfo.key}]"
            return part
        if isinstance(part, dict):
            return {walk(k): walk(v) for k, v in part.items()}
        if isinstance(part, list | tuple | set | frozenset):
            return [walk(one) for one in part]
        return part

    return walk(plain), found


def may_hold_a_zone(raw: bytes | str) -> bool:
    """Whether JSON may contain a timestamp written by `written`."""
    if isinstance(raw, str):
        return ']"' in raw and _WRITTEN.search(raw.encode(errors="replace")) is not None
    return b']"' in raw and _WRITTEN.search(raw) is not None


def reader(annotation: Any, dec_hook: Callable[[Any, Any], Any]) -> Callable[[bytes | str], Any] | None:
    """Returns a function that reads JSON with such timestamps as this annotation. Returns None if
    no part of the annotation is a datetime. msgspec must accept the annotation.
    """
    kind = inspect.type_info(annotation)
    if not _has_moments(kind):
        return None

    def read(raw: bytes | str) -> Any:
        plain = _restored(msgspec.json.decode(raw), kind)
        return msgspec.convert(plain, annotation, builtin_types=(), str_keys=True, dec_hook=dec_hook)

    return read


def _has_moments(kind: object) -> bool:
    seen: dict[int, object] = {}
    waiting = [kind]
    while waiting:
        one = waiting.pop()
        if isinstance(one, inspect.DateTimeType):
            return True
        if id(one) in seen:
            continue
        seen[id(one)] = one
        if isinstance(one, tuple):
            waiting += one
        elif isinstance(one, inspect.Type | inspect.Field):
            waiting += [getattr(one, name) for name in one.__struct_fields__]
    return False


def _restored(data: Any, kind: Any) -> Any:
    """Converts text to a datetime wherever the type expects a datetime. Other text stays text."""
    if isinstance(kind, inspect.DateTimeType):
        return _moment(data) if isinstance(data, str) else data
    if isinstance(kind, inspect.UnionType):
        for member in kind.types:
            data = _restored(data, member)
        return data
    if isinstance(kind, inspect.Metadata):
        return _restored(data, kind.type)
    if isinstance(data, dict):
        if isinstance(kind, inspect.DictType):
            return {_restored(k, kind.key_type): _restored(v, kind.value_type) for k, v in data.items()}
        if (
            isinstance(kind, inspect.StructType)
            and kind.tag is not None
            and data.get(kind.tag_field) != kind.tag
        ):
            return data
        if isinstance(kind, _OBJECTS):
            fields = {field.encode_name: field.type for field in kind.fields}
            return {k: _restored(v, fields[k]) if k in fields else v for k, v in data.items()}
    if isinstance(data, list):
        if isinstance(kind, inspect.TupleType):
            return [_restored(v, k) for v, k in zip(data, kind.item_types, strict=False)] + data[
                len(kind.item_types) :
            ]
        if isinstance(kind, inspect.CollectionType):
            return [_restored(one, kind.item_type) for one in data]
        if isinstance(kind, inspect.NamedTupleType | inspect.StructType):
            kinds = [field.type for field in kind.fields]
            if isinstance(kind, inspect.StructType) and kind.tag is not None:
                kinds.insert(0, inspect.AnyType())
            return [_restored(v, k) for v, k in zip(data, kinds, strict=False)] + data[len(kinds) :]
    return data


_OBJECTS = (inspect.StructType, inspect.DataclassType, inspect.TypedDictType)


def _moment(text: str) -> datetime | str:
    found = _TEXT.fullmatch(text)
    if found is None:
        return text
    try:
        moment, zone = datetime.fromisoformat(found[1]), ZoneInfo(found[2])
    except (ValueError, OSError, KeyError):  # KeyError: this system does not know the zone
        return text
    for fold in (0, 1):
        local = moment.replace(tzinfo=zone, fold=fold)
        if local.utcoffset() == moment.utcoffset():
            return local
    # The zone's rules have changed since. Keep the moment, not the local time.
    return moment.astimezone(zone)
