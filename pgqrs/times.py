"""Moments as callers pass them: ISO 8601 text with its offset, or a datetime that knows its zone."""

from datetime import UTC, datetime

from pgqrs.errors import ValidationError


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
    return found.astimezone(UTC)
