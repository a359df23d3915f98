"""Keeps JSON text that PostgreSQL's jsonb would change.

jsonb orders the keys of an object (shorter ones first, then by bytes), writes exponents out, and
drops the sign of a negative zero. But a replay must return a step's result exactly as the step
returned it. If the keys were in another order, a workflow that loops over them would call its steps
in another order, and one step would get the result of another. So JSON that jsonb would change is
also stored as text, in the column `output_text`.
"""

import itertools
import math
import re
from typing import Any

import msgspec

from pgqrs.store.sql import Dialect

_SUSPECT = re.compile(rb"\{|\d[eE]|-0")


def exact_text(raw: bytes | None, dialect: Dialect) -> str | None:
    """Returns the text to store beside the value. Returns None if the column of the value keeps it
    exactly.
    """
    if raw is None or dialect != "postgres" or _SUSPECT.search(raw) is None:
        return None
    try:
        kept = _kept(msgspec.json.decode(raw))
    except RecursionError:
        kept = False  # nested too deeply to check
    except msgspec.DecodeError:
        kept = True  # the database will refuse it
    return None if kept else raw.decode()


def _kept(value: Any) -> bool:
    if isinstance(value, dict):
        keys = [(len(key), key) for key in (k.encode() for k in value)]
        return all(a < b for a, b in itertools.pairwise(keys)) and all(map(_kept, value.values()))
    if isinstance(value, list):
        return all(map(_kept, value))
    if isinstance(value, float):
        return "e" not in repr(value) and (value != 0 or math.copysign(1, value) > 0)
    return True
