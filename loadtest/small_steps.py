"""The work for the comparison of backends: steps that do nothing."""

from datetime import UTC, datetime
from pathlib import Path

import pgqrs
from loadtest.mark import mark_start, started_at


@pgqrs.step
def nothing() -> None:
    mark_start()


@pgqrs.workflow
def one_step() -> None:
    nothing()


@pgqrs.workflow
def three_steps() -> None:
    for _ in range(3):
        nothing()


def seconds_since_start(mark: Path, archived_at: datetime | str) -> float:
    at = archived_at if isinstance(archived_at, datetime) else datetime.fromisoformat(archived_at)
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return at.timestamp() - started_at(mark)
