"""Checks of names of queues, workflows, steps and workers, which every database must accept."""

import re

from pgqrs.errors import ValidationError
from pgqrs.model.bounds import NAME_CHARS_MAX

# PostgreSQL text cannot hold NUL, and UTF-8 cannot encode an unpaired surrogate.
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


def checked(name: object, kind: str) -> str:
    """Returns the name. Raises ValidationError if it is not valid."""
    if not isinstance(name, str) or not 0 < len(name) <= NAME_CHARS_MAX or not storable(name):
        raise ValidationError(
            f"{str(name)[:80]!r} cannot name a {kind}: 1 to {NAME_CHARS_MAX} "
            "characters, no NUL and no half of a surrogate pair"
        )
    return name


def storable(text: str) -> bool:
    return _UNSTORABLE.search(text) is None
