"""Converts Python values to JSON and back, by annotation: inputs, results and payloads.

msgspec does the conversion. This module adds checks and conversions. Values that JSON or jsonb
would change silently or refuse (NaN, NUL, an unpaired surrogate) are refused before anything is
written, and the error names their place. Some types that msgspec does not handle are converted:
Path, pydantic models, subclasses of str, int and float, and unions that msgspec finds ambiguous.
"""

import dataclasses
import datetime
import functools
import inspect
import itertools
import json
import math
import operator
import re
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import PurePath
from typing import Any

import msgspec
import msgspec.inspect

from pgqrs.errors import SerializationError, ValidationError
from pgqrs.values import zones
from pgqrs.values.survival import LEAVES, Change, changed, exact_time, is_plain, model_changed

# Limits nested lists and objects. It is the same on every Python version, and below the stack limit of
# the oldest one.
NESTING_MAX = 500

PLAIN_DATA = (
    "numbers, text, bytes, lists, tuples, sets, dicts, dataclasses, msgspec Structs, attrs classes, "
    "pydantic models, enums, dates and times, Decimal, UUID and Path"
)


UNCHECKED: Any = object()


def encode(value: object, *, what: str, limit: int | None = None, annotation: Any = UNCHECKED) -> bytes:
    """Returns a value as JSON.

    `what` names the value in errors ("the result of step 'compress'"). `limit` is in bytes of JSON.
    With `annotation`, the value must come back unchanged when its JSON is read with this
    annotation.

    Raises SerializationError, with the path in the value, if JSON cannot represent the value or
    would change it. Raises ValidationError if the JSON exceeds the limit.
    """
    if _is_surely_exact(value, annotation):
        return _ENCODER.encode(value)
    try:
        raw = _ENCODER.encode(value)
        # msgspec writes NaN as null. An exact check costs more than encoding, so only suspicious
        # values get one.
        if b"null" in raw or b"\\u0000" in raw:
            _refuse_what_jsonb_refuses(msgspec.to_builtins(value, enc_hook=_enc_hook))
        raw = _keeping_floats(_keeping_zones(value, raw))
        _refuse_deep_nesting(raw)
    except RecursionError as e:
        raise SerializationError(
            f"{what} cannot be stored as JSON: it contains itself, or is nested too deeply; break the cycle, "
            "or refer to the other value by an id"
        ) from e
    except _Unfit as e:
        raise SerializationError(f"{what} cannot be stored as JSON: {e}") from None
    except _Lost as e:
        path = _narrow(value, stop=e.model)[0] + "".join(map(_step, e.change.path))
        raise _not_the_same(what, path, e.change.reason) from None
    except Exception as e:  # includes exceptions of a model's serializer or a property
        path, part = _narrow(value)
        raise SerializationError(f"{what} cannot be stored as JSON: {_at(path)}{_why_unfit(e, part)}") from e
    if limit is not None and len(raw) > limit:
        raise ValidationError(
            f"{what} is {len(raw):,} bytes of JSON, over the limit of {limit:,}; store the "
            "data elsewhere and pass its path or key, or set a higher Config.max_payload_size_bytes"
        )
    if annotation is not UNCHECKED:
        _refuse_what_would_change(value, raw, annotation, what)
    return raw


def _is_surely_exact(value: object, annotation: Any) -> bool:
    """Whether no check of `encode` applies to this value. The checks take longer than many steps
    do.
    """
    kind = type(value)
    if annotation is not kind and annotation is not Any and annotation is not UNCHECKED:
        return False
    if kind is int:
        return -(2**63) <= typing.cast(int, value) < 2**63
    return value is None or kind is bool


def refuse_what_changed(value: object, again: object, annotation: Any, what: str) -> None:
    """Raises SerializationError if `again`, which was read with this annotation, differs from the
    value.
    """
    strict = ambiguous(annotation)
    if not strict and is_plain(value):
        return
    change = changed(value, again, strict)
    if change is not None:
        raise _not_the_same(what, "".join(map(_step, change.path)), change.reason)


def _refuse_what_would_change(value: object, raw: bytes, annotation: Any, what: str) -> None:
    if type(value) is annotation and annotation in LEAVES:
        return
    if is_plain(value) and not ambiguous(annotation):
        return
    refuse_what_changed(value, decode(raw, annotation, what=what), annotation, what)


def _not_the_same(what: str, path: str, reason: str) -> SerializationError:
    return SerializationError(f"{what} would not come back from the database as it is: {_at(path)}{reason}")


def with_json_keys(value: object) -> object:
    """Returns the value with True, False and None as dict keys converted to the text that Python's
    json uses. msgspec writes true as 1 and refuses null. Only the 0.15 API uses this, because it
    walks through the whole value.
    """
    if isinstance(value, dict):
        return {
            _JSON_KEYS[k] if k is None or isinstance(k, bool) else k: with_json_keys(v)
            for k, v in value.items()
        }
    if type(value) in (list, tuple):
        return [with_json_keys(v) for v in typing.cast(list[object], value)]
    return value


_JSON_KEYS = {True: "true", False: "false", None: "null"}


def decode(raw: bytes | str, annotation: Any, *, what: str) -> Any:
    """Returns JSON as a value of this annotation, which must be evaluated. With Any, object or no
    annotation (inspect.Parameter.empty), returns plain lists, dicts, text and numbers. Raises
    SerializationError.
    """
    try:
        _refuse_deep_nesting(raw)
        return _decoder(annotation)(raw)
    except RecursionError as e:
        raise SerializationError(f"{what} is nested too deeply to be read: over {NESTING_MAX} levels") from e
    except (msgspec.ValidationError, _Misfit) as e:
        raise SerializationError(f"{what} does not fit its annotation {_shown(annotation)}: {e}") from e
    except (msgspec.DecodeError, UnicodeError) as e:
        raise SerializationError(f"{what} is no valid JSON: {e}") from e
    except Exception as e:  # an unusable annotation, or an exception of a class's own code
        raise SerializationError(f"{what} cannot be read as {_shown(annotation)}: {e}") from e


def check(annotation: Any, what: str) -> str | None:
    """Returns why JSON cannot be read with this annotation, which must be evaluated. Returns None
    if it can be read, or if that depends on classes that are not defined yet.
    """
    try:
        unfit = next(_unfit_types(msgspec.inspect.type_info(_readable(annotation))), None)
    except NameError:
        return None
    except Exception as e:
        unfit = str(e)
    if unfit is None:
        return None
    return f"{what} has the annotation {_shown(annotation)}, which JSON cannot carry: {unfit}"


def parse_json(text: str | bytes, *, what: str, limit: int | None = None) -> bytes:
    """Checks JSON that a person wrote, and returns it without white space. Numbers keep their
    digits. Raises ValidationError with line and column.
    """
    raw = text.encode(errors="surrogatepass") if isinstance(text, str) else text
    if not raw.strip():
        raise ValidationError(f'{what} is empty; JSON is expected, such as 1, "text" or {{"path": "/data"}}')
    try:
        raw.decode()
        _refuse_deep_nesting(raw)
        value = msgspec.json.decode(raw)
        if b"\\u0000" in raw:
            _refuse_what_jsonb_refuses(value)
    except UnicodeDecodeError as e:
        raise ValidationError(f"{what} is not UTF-8 {_position(raw, e.start)}") from None
    except RecursionError:
        raise ValidationError(f"{what} is nested too deeply: over {NESTING_MAX} levels") from None
    except _Unfit as e:
        raise ValidationError(f"{what} cannot be stored: {e}") from None
    except msgspec.DecodeError as e:
        raise ValidationError(f"{what} is no valid JSON: {_why_malformed(raw, e)}") from None
    compact: bytes = _keeping_floats(msgspec.json.format(raw, indent=-1))
    if limit is not None and len(compact) > limit:
        raise ValidationError(f"{what} is {len(compact):,} bytes of JSON, over the limit of {limit:,}")
    return compact


# How a function's arguments became the value X: there were none, X is the only one, or X holds them
# by name.
NONE, ALONE, BY_NAME = "none", "alone", "by name"


def wrap_input(x: bytes, bound: str | None = None) -> bytes:
    """Returns the payload that a trigger stores: {"input": x}, where `x` is JSON. A second key
    stores `bound`. 0.15 reads only "input".
    """
    beside = b"" if bound is None else b',"pgqrs_bound":"' + bound.encode() + b'"'
    return b'{"input":' + x + beside + b"}"


def unwrap_input(payload: bytes) -> bytes:
    """Returns the JSON of x. Raises SerializationError if the payload has another form."""
    return unwrap_bound_input(payload)[0]


def unwrap_bound_input(payload: bytes) -> tuple[bytes, str | None]:
    """Returns the JSON of x, and how the arguments became x. The latter is None if it is not
    stored. Raises SerializationError if the payload has another form.
    """
    try:
        _refuse_deep_nesting(payload)
        found = _TRIGGERED.decode(payload)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as e:
        raise SerializationError(
            'the message\'s payload is not {"input": …}, which '
            f"a trigger stores: {e or 'nested too deeply'}"
        ) from e
    return bytes(found.input), found.pgqrs_bound if found.pgqrs_bound in (NONE, ALONE, BY_NAME) else None


def without_bound(payload: Any) -> Any:
    """Returns a decoded payload without the second key that `wrap_input` writes, so as 0.15 stores
    it.
    """
    if isinstance(payload, dict) and payload.keys() == {"input", "pgqrs_bound"}:
        return {"input": payload["input"]}
    return payload


class _Triggered(msgspec.Struct):
    input: msgspec.Raw
    pgqrs_bound: Any = None


_TRIGGERED = msgspec.json.Decoder(_Triggered)


def _keeping_zones(value: object, raw: bytes) -> bytes:
    """Writes the names of time zones into the JSON, because msgspec writes only their offsets."""
    if not zones.may_hold_a_moment(raw):
        return raw
    plain = msgspec.to_builtins(value, enc_hook=_enc_hook, builtin_types=(datetime.datetime,))
    written, found = zones.written(plain)
    return _ENCODER.encode(written) if found else raw


def _refuse_deep_nesting(raw: bytes | str) -> None:
    """Raises RecursionError at NESTING_MAX levels. Older Python versions raise it themselves at
    about 1,000.
    """
    if len(raw) <= NESTING_MAX:
        return
    text = raw if isinstance(raw, bytes) else raw.encode(errors="replace")
    if text.count(b"[") + text.count(b"{") <= NESTING_MAX:  # nearly all JSON
        return
    brackets = text.translate(None, _NO_BRACKETS)
    for _ in range(8):  # ordinary nesting leaves nothing
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
        if not brackets:
            return
    # Some brackets are in strings, or the nesting is deep.
    brackets = _STRING.sub(b"", text).translate(None, _NO_BRACKETS)
    if max(itertools.accumulate(map(_STEPS.__getitem__, brackets)), default=0) > NESTING_MAX:
        raise RecursionError


_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)


def _keeping_floats(raw: bytes) -> bytes:
    """Writes floats without an exponent but with ".0" if jsonb would change them. (jsonb returns
    1e23 as 100000000000000000000000, which reads as an integer that does not equal the float.)
    """
    if not (_LOWER_EXPONENT.search(raw) or _UPPER_EXPONENT.search(raw)):  # nearly all JSON
        return raw
    return _STRING_OR_NUMBER.sub(lambda m: m[0] if m[2] is None else _written_out(m[0], m[2]), raw)


# Two patterns, each with one first letter: searching for a letter takes less than half the time of
# a character class.
_LOWER_EXPONENT, _UPPER_EXPONENT = re.compile(rb"e\+?[0-9]"), re.compile(rb"E\+?[0-9]")
# A number is matched as a whole, with or without an exponent, so that the time is linear in the
# length of the text.
_STRING_OR_NUMBER = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|(-?\d+(?:\.\d+)?)([eE][+-]?\d+)?')
_EXPONENT_MAX = 400  # more than any float has


def _written_out(number: bytes, exponent: bytes) -> bytes:
    power = exponent[1:]
    if power.startswith(b"-") or len(power) > 1000 or int(power) > _EXPONENT_MAX:
        return number
    exact = Decimal(number.decode())
    return f"{exact:f}.0".encode() if exact == exact.to_integral_value() else number


# Encoding


def _enc_hook(value: Any) -> Any:
    """Converts a value of a type that msgspec cannot encode to a value of one that it can."""
    if isinstance(value, PurePath):
        return str(value)
    # Not str(value) or the like: a subclass may redefine that.
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, bytes):
        return bytes.__getitem__(value, slice(None))
    if isinstance(value, datetime.date | datetime.time | datetime.timedelta):
        return exact_time(value)
    if _is_model(type(value)):
        return _dumped(value)
    if isinstance(value, msgspec.Raw):
        return msgspec.json.decode(value)
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        plain = value.tolist()
        # V: records, whose field names would be lost
        kind = value.dtype.kind
        if type(plain) is not type(value) and kind != "V" and not (kind in "mM" and _holds_int(plain)):
            return plain
    if inspect.iscoroutine(value):
        value.close()  # otherwise Python prints a warning as well
        raise TypeError(
            "a coroutine is no JSON value: await it; an async step is for an `async def` workflow"
        )
    raise TypeError(
        f"a value of type {_type_name(type(value))} is no JSON value; use {_instead_of(value) or PLAIN_DATA}"
    )


def _instead_of(value: Any) -> str:
    kind = type(value)
    if isinstance(value, complex):
        return "its .real and .imag"
    if "Secret" in kind.__name__ and hasattr(value, "get_secret_value"):
        return "the name under which a step finds the secret, or, if it may be stored, its get_secret_value()"
    if isinstance(value, type):
        return ""
    if kind.__name__ == "NAType":
        return "None"
    if getattr(value, "shape", ()) and hasattr(value, "tolist"):
        return ".tolist() of it"
    for method, way in _WAYS:
        if hasattr(kind, method):
            return way
    return ""


# Methods that a value may have, and the advice on converting it to JSON.
_WAYS = (
    ("to_dict", ".to_dict() of it"),
    ("item", ".item() of it, which is a plain number"),
    ("__index__", "int(x) of it"),
    ("__float__", "float(x) of it"),
    ("tolist", ".tolist() of it"),
    ("keys", "dict(x) of it"),
    ("__iter__", "list(x) of it"),
)


def _holds_int(plain: Any) -> bool:
    """Whether numpy times became bare integers, because Python's types cannot hold them."""
    while isinstance(plain, list) and plain:
        plain = plain[0]
    return isinstance(plain, int)


class _Lost(ValueError):
    """A model that cannot be restored from its own JSON."""

    def __init__(self, model: object, change: Change) -> None:
        super().__init__(change.reason)
        self.model = model
        self.change = change


def _dumped(model: Any) -> Any:
    """Dumps a model by field name and without computed fields, because this form can always be read
    back.
    """
    plain = model.model_dump(mode="json", round_trip=True, by_alias=False)
    try:
        again = _read_model(type(model), msgspec.json.encode(plain))
    except Exception:
        return plain  # reading it back will raise a clear error
    change = model_changed(model, again)
    if change is not None:
        raise _Lost(model, change)
    return plain


_ENCODER = msgspec.json.Encoder(enc_hook=_enc_hook)


class _Unfit(Exception):
    """Names the part of a value that cannot be stored, and a remedy."""


def _refuse_what_jsonb_refuses(value: object) -> None:
    """Checks every part of a value that consists of plain types. Raises _Unfit."""
    # Iterative, because a caller in deep recursion has little stack left. A place is (outer place, key).
    waiting: list[tuple[object, Any]] = [(value, None)]
    while waiting:
        part, place = waiting.pop()
        if isinstance(part, dict):
            for key, member in part.items():
                waiting.append((member, (place, key)))
                waiting.append((key, (place, key)))
        elif isinstance(part, list | tuple):
            waiting += [(item, (place, index)) for index, item in enumerate(part)]
        elif isinstance(part, str) and "\0" in part:
            raise _Unfit(
                f"{_at(_path(place))}text with a NUL character, "
                "which PostgreSQL refuses; remove it, or use bytes"
            )
        elif isinstance(part, float) and not math.isfinite(part):
            raise _Unfit(f"{_at(_path(place))}{part} is no JSON number; use None, or text")


def _narrow(value: object, stop: object = None) -> tuple[str, object]:
    """Returns the path and the innermost part that cannot be encoded by itself. Does not look
    inside `stop`.
    """
    path = ""
    while value is not stop or stop is None:
        for key, part in _parts(value):
            try:
                _ENCODER.encode(part)
            except Exception:
                path, value = path + _step(key), part
                break
        else:
            break
    return path, value


def _parts(value: Any) -> Iterable[tuple[object, object]]:
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return enumerate(value)
    if isinstance(value, msgspec.Struct):
        return [(name, getattr(value, name, None)) for name in value.__struct_fields__]
    if _is_model(type(value)):
        return [(name, getattr(value, name, None)) for name in type(value).model_fields]
    if not isinstance(value, type) and (
        dataclasses.is_dataclass(value) or hasattr(type(value), "__attrs_attrs__")
    ):
        names = [f.name for f in getattr(type(value), "__attrs_attrs__", None) or dataclasses.fields(value)]
        return [(name, getattr(value, name, None)) for name in names]
    return ()


def _why_unfit(error: Exception, part: object) -> str:
    if isinstance(error, UnicodeEncodeError):
        return (
            "text with half of a surrogate pair, which is no "
            "character; decode it with errors='replace', or use bytes"
        )
    if isinstance(part, dict):  # each of its values can be encoded by itself
        return f"a dict's keys must be text, numbers or dates: {error}"
    return str(error) or type(error).__name__


def _path(place: Any) -> str:
    steps = []
    while place is not None:
        place, key = place
        steps.append(_step(key))
    return "".join(reversed(steps))


def _step(key: object) -> str:
    if isinstance(key, str):
        return f".{key}" if key.isidentifier() else f"[{json.dumps(key[:80])}]"
    return f"[{key}]" if isinstance(key, int) else f"[{_type_name(type(key))}]"


def _at(path: str) -> str:
    return f"at ${path}: " if path else ""


# Decoding


def _decoder(annotation: Any) -> Callable[[bytes | str], Any]:
    if annotation is Any or type(annotation) is type:
        return _decoder_of_class(annotation)
    try:
        # The text is part of the key: `Path | str` and `str | Path` are equal, but their order matters.
        return _cached_decoder(annotation, repr(annotation))
    except TypeError as e:
        if "unhashable" not in str(e):
            raise
        return _new_decoder(annotation)


@functools.lru_cache(maxsize=1024)
def _decoder_of_class(annotation: Any) -> Callable[[bytes | str], Any]:
    return _new_decoder(annotation)


@functools.lru_cache(maxsize=1024)
def _cached_decoder(annotation: Any, text: str) -> Callable[[bytes | str], Any]:
    return _new_decoder(annotation)


def _new_decoder(annotation: Any) -> Callable[[bytes | str], Any]:
    if _is_model(annotation):
        return functools.partial(_read_model, annotation)
    readable = _readable(annotation)
    plain = msgspec.json.Decoder(readable, dec_hook=_dec_hook).decode
    zoned = zones.reader(readable, _dec_hook)
    if zoned is None:
        return plain
    return lambda raw: zoned(raw) if zones.may_hold_a_zone(raw) else plain(raw)


@functools.lru_cache(maxsize=1024)
def _cached_ambiguous(annotation: Any, text: str) -> frozenset[type]:
    members: set[type] = set()
    waiting = [_readable(annotation)]
    while waiting:
        one = waiting.pop()
        if isinstance(one, _Choice):
            members |= {typing.get_origin(m) or m for m in one.members}
            waiting += one.members
        waiting += [arg for arg in typing.get_args(one) if not isinstance(arg, str)]
    return frozenset(members & {*LEAVES, list, tuple})


def ambiguous(annotation: Any) -> frozenset[type]:
    """Returns the plain types in a union whose members have the same form in JSON."""
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return frozenset()
    try:
        return _cached_ambiguous(annotation, repr(annotation))
    except TypeError:  # unhashable, or nothing that JSON can be read with
        return frozenset()


class _Misfit(ValueError):
    """JSON that a model refuses. It is a ValueError, so that msgspec adds the path."""


def _dec_hook(wanted: Any, value: Any) -> Any:
    wanted = typing.get_origin(wanted) or wanted
    if isinstance(wanted, _Choice):
        return wanted.read(msgspec.json.encode(value))
    if _is_path(wanted):
        if not isinstance(value, str):
            raise TypeError(f"Expected `str`, got `{_type_name(type(value))}`")
        return wanted(value)
    if _is_model(wanted):
        return _read_model(wanted, msgspec.json.encode(value))
    raise TypeError(f"a {_type_name(wanted)} cannot be read from JSON; use {PLAIN_DATA}")


def _readable(annotation: Any) -> Any:
    """Replaces the parts of an annotation that msgspec does not accept. Fields of a class in the
    annotation stay as they are.
    """
    if annotation is inspect.Parameter.empty or annotation in (object, typing.NoReturn, typing.Never):
        return Any
    if annotation is typing.LiteralString:
        return str
    if annotation in (Iterable, typing.Iterable):
        return list
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return _union([_readable(arg) for arg in args])
    if origin is typing.Annotated:
        return typing.Annotated[(_readable(args[0]), *annotation.__metadata__)]
    if origin is Iterable:
        return types.GenericAlias(Collection, (_readable(args[0]),))
    if not args or origin is typing.Literal or not isinstance(origin, type):
        return annotation
    readable = tuple(arg if arg is ... or isinstance(arg, list) else _readable(arg) for arg in args)
    return annotation if readable == args else origin[readable]  # type: ignore[index]


def _union(members: list[Any]) -> Any:
    """Returns a union that msgspec accepts. It refuses a union such as Path | str, whose members
    have the same form in JSON.
    """
    # written so that mypy accepts it
    union: Any = operator.getitem(typing.Union, tuple(members))
    try:
        msgspec.json.Decoder(union)
        return union
    except TypeError:
        rest = tuple(member for member in members if member is not types.NoneType)
        choice = _Choice("Choice", (), {"members": rest})
        return choice if len(rest) == len(members) else typing.Union[choice, None]  # noqa: UP007


class _Choice(type):
    """A class that represents a union. msgspec passes it to `_dec_hook`."""

    members: tuple[Any, ...]

    def __instancecheck__(cls, value: object) -> bool:
        return True  # msgspec asks whether the hook returned the expected type

    def read(cls, raw: bytes) -> Any:
        """Reads the JSON as the first member, in the order written, that loses nothing of it. If
        there is none, reads it as the first member that accepts it. So {"name": …, "breed": …}
        becomes a Dog, and not a Cat without a breed.
        """
        plain = msgspec.json.decode(raw)
        lossy, errors = [], []
        for member in cls.members:
            try:
                value = _decoder(member)(raw)
                if msgspec.json.decode(_ENCODER.encode(value)) == plain and not _has_more_fields(
                    value, plain
                ):
                    return value
                lossy.append(value)
            except Exception as e:
                errors.append(f"{_shown(member)}: {e}")
        if lossy:
            return lossy[0]
        raise _Misfit(f"fits none of {len(cls.members)} types ({'; '.join(errors)})")


def _has_more_fields(value: Any, plain: Any) -> bool:
    """Whether a dataclass has more fields than msgspec writes. msgspec does not write a field whose
    default is stored on the class.
    """
    if not (isinstance(plain, dict) and dataclasses.is_dataclass(value)):
        return False
    return any(field.name not in plain for field in dataclasses.fields(value))


def _unfit_types(found: object) -> Iterator[str]:
    """Yields why JSON cannot be read as some class inside this msgspec type."""
    # Keeps the objects alive, because an id could be reused otherwise.
    seen: dict[int, object] = {}
    waiting = [found]
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen[id(one)] = one
        if isinstance(one, tuple):
            waiting += one
        elif isinstance(one, msgspec.inspect.CustomType):
            if isinstance(one.cls, _Choice):
                waiting += [msgspec.inspect.type_info(member) for member in one.cls.members]
            elif not (_is_path(one.cls) or _is_model(one.cls)):
                yield f"{_type_name(one.cls)} is none of {PLAIN_DATA}"
        elif isinstance(one, msgspec.inspect.Type | msgspec.inspect.Field):
            waiting += [getattr(one, name) for name in one.__struct_fields__]
        if isinstance(one, msgspec.inspect.DataclassType):
            for attribute in getattr(one.cls, "__attrs_attrs__", ()):
                if attribute.name.startswith("_"):
                    yield (
                        f"{_type_name(one.cls)}.{attribute.name} would be "
                        "lost, for msgspec skips private attrs attributes"
                    )


def _is_path(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, PurePath)


# pydantic is optional: only a program that uses it has imported it


def _is_model(kind: object) -> bool:
    pydantic = sys.modules.get("pydantic.main")
    model = getattr(pydantic, "BaseModel", None)
    return model is not None and isinstance(kind, type) and issubclass(kind, model)


def _read_model(model: Any, raw: bytes | str) -> Any:
    try:
        return model.model_validate_json(raw, **_names_too())
    except ValueError as e:
        details = getattr(e, "errors", None)
        if details is None:
            raise
        # str(e) would show the input, which may be a secret.
        reasons = [f"{'.'.join(map(str, one['loc'])) or 'the value'}: {one['msg']}" for one in details()[:5]]
        raise _Misfit("; ".join(reasons)) from None


@functools.cache
def _names_too() -> dict[str, bool]:
    """Returns the arguments that make pydantic 2.11 and later accept field names besides aliases."""
    known = inspect.signature(sys.modules["pydantic.main"].BaseModel.model_validate_json).parameters
    return {"by_alias": True, "by_name": True} if "by_name" in known else {}


# Texts


def _shown(annotation: Any) -> str:
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return annotation.__qualname__
    return re.sub(r"\b(?:[A-Za-z_]\w*\.)+(?:<locals>\.)?(?=\w)", "", repr(annotation))


def _type_name(kind: Any) -> str:
    if not isinstance(kind, type):
        return _shown(kind)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def quoted(names: Sequence[str]) -> str:
    return ", ".join(repr(name[:80]) for name in names[:5])


def _why_malformed(raw: bytes, error: msgspec.DecodeError) -> str:
    text = str(error).removeprefix("JSON is malformed: ")
    found = re.fullmatch(r"(.*) \(byte (\d+)\)", text)
    if found:
        return f"{found[1]} {_position(raw, int(found[2]))}"
    half = re.search(rb"\\u[dD][89a-fA-F]", raw)
    if half:
        return f"half of a surrogate pair {_position(raw, half.start())}"
    return f"{text[:1].lower()}{text[1:]}" if "truncated" not in text else "it ends too early"


def _position(raw: bytes, byte: int) -> str:
    before = raw[:byte]
    line = before.count(b"\n") + 1
    column = len(before[before.rfind(b"\n") + 1 :].decode(errors="replace")) + 1
    near = raw[byte : byte + 20].split(b"\n")[0].decode(errors="replace")
    return f"at line {line}, column {column}" + (f", at {near!r}" if near else "")
