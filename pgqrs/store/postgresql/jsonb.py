"""What PostgreSQL's jsonb does not keep of a JSON text: the order of an object's keys (shorter ones come first, equally long ones by
their bytes), and numbers with an exponent or a negative zero, which come back written out and without the sign.

A replay must find a step's result as the step returned it: a loop over its keys takes the same way again, or other steps get its
results. So what jsonb would change is kept as text too, in the column `output_text`.
"""

import itertools
import math
import re
from typing import Any

import msgspec

from pgqrs.store.sql import Dialect

_SUSPECT = re.compile(rb"\{|\d[eE]|-0")


def exact_text(raw: bytes | None, dialect: Dialect) -> str | None:
    """The text that is to be kept beside the value, None where the column of the value keeps it."""
    if raw is None or dialect != "postgres" or _SUSPECT.search(raw) is None:
        return None
    try:
        kept = _kept(msgspec.json.decode(raw))
    except RecursionError:
        kept = False  # nested more deeply than we can look
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
