"""The workflows that the command line's tests supervise."""

import os
import pathlib
import signal

import pgqrs


@pgqrs.step
def double(x: int) -> int:
    return 2 * x


@pgqrs.step
def refuse(x: int) -> int:
    raise ValueError(f"cannot take {x}\nnor more")


@pgqrs.step(retry=pgqrs.StepRetryPolicy(3, pgqrs.BackoffStrategy.fixed(3600)))
def ask(x: int) -> int:
    raise ConnectionError("nobody there")


@pgqrs.step
def die_once(evidence: str) -> int:
    path = pathlib.Path(evidence)
    if not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return 1


@pgqrs.workflow
def fourfold(x: int) -> int:
    return double(double(x))


@pgqrs.workflow
def failing(x: int) -> int:
    return refuse(double(x))


@pgqrs.workflow
def asking(x: int) -> int:
    return ask(x)


@pgqrs.workflow
def pausing(x: int) -> int:
    pgqrs.pause("for a signature")
    return double(x)


@pgqrs.workflow
def dying(evidence: str) -> int:
    return die_once(evidence)


@pgqrs.workflow
def unspeakable() -> object:
    return object()


@pgqrs.handler(queue="mails")
def send(mail: dict[str, str]) -> None:
    if mail["to"] == "nobody":
        raise ValueError("no such address")
