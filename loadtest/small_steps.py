"""The work of the comparison of backends: steps that do nothing."""

import os
import time
from datetime import UTC, datetime
from pathlib import Path

import pgqrs

_marked = False


@pgqrs.step
def nothing(mark: str) -> None:
    global _marked
    if not _marked:
        _marked = True
        try:
            fd = os.open(mark, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return
        os.write(fd, repr(time.time()).encode())
        os.close(fd)


@pgqrs.workflow
def one_step(mark: str) -> None:
    nothing(mark)


@pgqrs.workflow
def three_steps(mark: str) -> None:
    for _ in range(3):
        nothing(mark)


def seconds_since_start(mark: Path, archived_at: datetime | str) -> float:
    at = archived_at if isinstance(archived_at, datetime) else datetime.fromisoformat(archived_at)
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return at.timestamp() - float(mark.read_text())
