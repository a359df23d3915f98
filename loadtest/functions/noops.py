"""The functions of drains and workflows. They do nothing, so that only the engine is measured."""

import pgqrs
from loadtest.mark import mark_start


@pgqrs.handler(queue="noop")
def noop(payload: int) -> None:
    mark_start()


@pgqrs.step
def first(n: int) -> int:
    mark_start()
    return n


@pgqrs.step
def second(n: int) -> int:
    return n


@pgqrs.step
def third(n: int) -> int:
    return n


@pgqrs.workflow
def strict(n: int) -> int:
    return third(second(first(n)))


@pgqrs.step(pure=True)
def pure_first(n: int) -> int:
    mark_start()
    return n


@pgqrs.step(pure=True)
def pure_second(n: int) -> int:
    return n


@pgqrs.step(pure=True)
def pure_third(n: int) -> int:
    return n


@pgqrs.workflow
def pure(n: int) -> int:
    return pure_third(pure_second(pure_first(n)))


@pgqrs.handler(queue="sized")
def sized(payload: str) -> None:
    mark_start()


@pgqrs.step
def nothing(n: int) -> int:
    mark_start()
    return n


@pgqrs.workflow
def many_steps(n: int, steps: int) -> int:
    for _ in range(steps):
        nothing(n)
    return n
