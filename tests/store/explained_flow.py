"""What the supervisor of test_statement_shapes.py works on."""

import pgqrs


@pgqrs.handler(queue="plain")
def plain(payload: int) -> None: ...


@pgqrs.step
def first(n: int) -> int:
    return n


@pgqrs.step
def second(n: int) -> int:
    return n


@pgqrs.workflow
def flow(n: int) -> int:
    return second(first(n))
