"""What the tests of tests/interop have supervised."""

import os
import time

import pgqrs
from tests.interop.programs import BEAT_S, SLOW_BEATS, SLOW_EVERY, note


@pgqrs.workflow
def double(x: int) -> int:
    return 2 * x


@pgqrs.step
def first() -> str:
    return "done by us"


@pgqrs.step
def second() -> str:
    return "done by us"


@pgqrs.workflow
def two_steps(how: str) -> list[str]:
    return [first(), second()]


@pgqrs.handler(queue="tasks")
def handle(payload: int) -> None:
    note(os.environ["PGQRS_TEST_EVIDENCE"], "supervised", pgqrs.current_run().id)
    time.sleep(SLOW_BEATS * BEAT_S if payload % SLOW_EVERY == 0 else 0.001)
