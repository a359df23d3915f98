"""Moments as callers pass them: ISO 8601 text with its offset, or a datetime that knows its zone."""

from datetime import UTC, datetime

from pgqrs.errors import ValidationError

# What every database holds, with a hundred years (the longest duration) added or taken away.
DAWN, DUSK = datetime(1900, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)


def moment(value: str | datetime) -> datetime:
    """In UTC. Raises ValidationError (a ValueError) for what is no moment, or does not say in which zone."""
    found: object = value
    if isinstance(value, str):
        try:
            found = datetime.fromisoformat(value)
        except ValueError:
            found = None
    if not isinstance(found, datetime) or found.tzinfo is None:
        raise ValidationError(
            f"Invalid ISO 8601 timestamp {value!r}: give date, time and offset, such as 2030-01-15T10:30:00Z"
        )
    try:
        found = found.astimezone(UTC)
    except OverflowError:
        found = DAWN
    if not DAWN < found < DUSK:
        raise ValidationError(f"{value!r} is no time to work with: give one between the years 1900 and 9000")
    return found
