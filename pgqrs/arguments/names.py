"""What can name a queue, a workflow, a step or a worker in every database."""

import re

from pgqrs.errors import ValidationError
from pgqrs.model.bounds import NAME_CHARS_MAX

_UNSTORABLE = re.compile("[\0\ud800-\udfff]")  # PostgreSQL has no NUL, and UTF-8 no half of a surrogate pair


def checked(name: object, kind: str) -> str:
    """The name. Raises ValidationError."""
    if not isinstance(name, str) or not 0 < len(name) <= NAME_CHARS_MAX or not storable(name):
        raise ValidationError(
            f"{str(name)[:80]!r} cannot name a {kind}: 1 to {NAME_CHARS_MAX} characters, no NUL and no half of a surrogate pair"
        )
    return name


def storable(text: str) -> bool:
    return _UNSTORABLE.search(text) is None
