"""Times as users pass them: ISO 8601 text with an offset, or a datetime with a time zone."""

from datetime import UTC, datetime

from pgqrs.errors import ValidationError

# Every database can store these times plus or minus a hundred years, the longest duration.
DAWN, DUSK = datetime(1900, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)


def moment(value: str | datetime) -> datetime:
    """Returns a time in UTC. Raises ValidationError, which is a ValueError, if the value is no time
    or has no time zone.
    """
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
