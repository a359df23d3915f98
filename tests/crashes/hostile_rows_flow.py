"""What runs beside rows that somebody else has written."""

import pgqrs

PAUSE_S = 1.0


@pgqrs.step
def before(n: int) -> int:
    return n


@pgqrs.step
def after(n: int) -> int:
    return n + 1


@pgqrs.workflow
def victim(n: int) -> int:
    """Leaves its worker for a moment: that is when its rows are written to."""
    kept = before(n)
    pgqrs.pause(resume_after=PAUSE_S)
    return after(kept)


@pgqrs.workflow
def healthy(n: int) -> int:
    return after(before(n))


@pgqrs.handler(queue="mail")
def mail(n: int) -> None:
    pass
