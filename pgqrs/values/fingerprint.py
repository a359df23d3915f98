"""Fingerprints of arguments: 64 bits, the same in every process, on every host and Python version.

A replay compares the fingerprint of each call with the recorded one, so that no call receives the
result of a call with other arguments. Many types are compared by their content: numbers, text,
bytes, dates, paths, enums, collections, dataclasses, Structs, pydantic models, and numpy arrays by
their buffer. Any other value (a connection, a file, a generator, an object of an ordinary class)
counts by its type only.
"""

import functools
import hashlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import msgspec

# Limits the nesting that is compared by content. Deeper members count by their type.
DEPTH_MAX = 50


def folded(args: Sequence[Any], kwargs: Mapping[str, Any], names: Sequence[str | None]) -> tuple[Any, ...]:
    """Returns a call's arguments in one form, however they were passed: `f(1, y=2)` gives `f(1,
    2)`.

    `names` are the function's parameters by position, and None for a parameter without a keyword.
    Arguments that are left to their default are omitted, so that adding an optional parameter
    changes nothing.
    """
    if not kwargs:
        return tuple(args)
    rest, positions = dict(kwargs), list(args)
    for name in names[len(args) :]:
        if name is None or name not in rest:
            break
        positions.append(rest.pop(name))
    return (*positions, rest) if rest else tuple(positions)


class Fingerprints:
    """Computes the fingerprints of one run. `secret` is the key of the hash. Without a key, short
    arguments could be guessed from their fingerprint.
    """

    def __init__(self, secret: bytes) -> None:
        self._new = hashlib.blake2b(digest_size=8, key=secret[:64]).copy

    def of(self, arguments: tuple[Any, ...]) -> int:
        """Returns a signed 64-bit number. Never raises."""
        if not arguments:
            return 0
        hashed = self._new()
        try:
            for argument in arguments:
                if type(argument) in _SETS:
                    # msgspec sorts a set by `<`, which does not order sets of sets.
                    hashed.update(_written(arguments))
                    break
            else:
                hashed.update(_encoded(arguments))
        except Exception:  # includes exceptions from the value's own code
            hashed = self._new()
            hashed.update(_written(arguments))
        return int.from_bytes(hashed.digest(), "little", signed=True)


def _written(arguments: tuple[Any, ...]) -> bytes:
    try:
        return _QUICK.encode([_content(a, DEPTH_MAX) for a in arguments])
    except Exception:
        return _QUICK.encode([_type_of(a) for a in arguments])


def _content(value: Any, depth: int) -> Any:
    """Returns the value's content, built from lists, text, numbers and bytes only."""
    kind = type(value)
    if kind in _ATOMS:
        return value
    if kind is int:
        return value if -(2**63) <= value < 2**63 else ("int", hex(value))
    if kind is str:
        return value.encode("utf-8", "surrogatepass")
    if depth <= 0:
        return _type_of(value)
    if isinstance(value, Mapping):
        pairs = [(_content(k, depth - 1), _content(v, depth - 1)) for k, v in value.items()]
        return ("map", sorted(_QUICK.encode(p) for p in pairs))
    if isinstance(value, set | frozenset):
        return ("set", sorted(_QUICK.encode(_content(v, depth - 1)) for v in value))
    if isinstance(value, list | tuple):
        return [_content(v, depth - 1) for v in value]
    if (
        isinstance(value, msgspec.Struct)
        or hasattr(kind, "__dataclass_fields__")
        or hasattr(kind, "__attrs_attrs__")
    ):
        return (_type_of(value), _content(_fields(value), depth - 1))
    try:
        return _QUICK.encode(value)
    except Exception:
        return _content(_in_words(value), depth - 1)


def _fields(value: Any) -> dict[str, Any]:
    if isinstance(value, msgspec.Struct):
        return msgspec.structs.asdict(value)
    known = getattr(value, "__dataclass_fields__", None) or [a.name for a in value.__attrs_attrs__]
    return {name: getattr(value, name, None) for name in known}


def _in_words(value: Any) -> Any:
    """Returns the content of a value that msgspec cannot encode."""
    for name, kind, words in _WORDS:
        if isinstance(value, kind):
            return (name, words(value))
    module = str(type(value).__module__).partition(".")[0]  # a class may have a property of that name
    if module in _SHOWN_IN_FULL:
        return (_type_of(value), repr(value))
    if module == "numpy" and (found := _numpy_words(value)) is not None:
        return found
    if hasattr(type(value), "__pydantic_fields__") or hasattr(type(value), "__pydantic_root_model__"):
        return (_type_of(value), dict(vars(value)))
    if isinstance(value, Iterable) and module == "collections":  # a deque
        return (_type_of(value), list(value))
    if callable(value) and hasattr(value, "__qualname__"):
        return ("callable", value.__qualname__)
    return _type_of(value)


def _numpy_words(value: Any) -> Any:
    numpy = sys.modules["numpy"]
    if isinstance(value, numpy.ndarray):
        content = value.tolist() if value.dtype.hasobject else value.tobytes()
        return ("array", value.dtype.str, list(value.shape), content)
    if isinstance(value, numpy.generic):
        return ("number", value.dtype.str, value.tobytes())
    if isinstance(value, numpy.dtype):
        return ("dtype", value.str)
    return None


def _type_of(value: Any) -> Any:
    # The module is left out: a script has another module name in its workers, and Python moves its
    # own classes between modules.
    return ("type", type(value).__qualname__)


_ATOMS = (type(None), bool, float, bytes)
_SETS = (set, frozenset)
_WORDS: tuple[tuple[str, Any, Callable[[Any], Any]], ...] = (
    ("path", PurePath, str),
    ("int", int, lambda v: hex(int(v))),  # a subclass, or too large
    ("shown", complex | range | slice, repr),
    ("raised", BaseException, lambda v: (_type_of(v), list(v.args))),
    ("partial", functools.partial, lambda v: (v.func, list(v.args), dict(v.keywords))),
    ("class", type, lambda v: v.__qualname__),
)
# Modules of the standard library whose values show their whole content in their repr.
_SHOWN_IN_FULL = ("array", "fractions", "ipaddress", "re", "zoneinfo")
_QUICK = msgspec.msgpack.Encoder(order="deterministic", enc_hook=_in_words)
_encoded = _QUICK.encode
