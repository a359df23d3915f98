"""Runs and deliveries with a time of their own. Every body notes its start, as in the pipeline."""

import asyncio
import time

import pgqrs
from tests.crashes.pipeline import note, note_message


@pgqrs.step(retry=pgqrs.StepRetryPolicy(5, pgqrs.BackoffStrategy.fixed(0)))
def sleep(evidence: str, seconds: float) -> None:
    note(evidence)
    time.sleep(seconds)


@pgqrs.workflow(timeout="600ms")
def limited(evidence: str, sleeps: list[float]) -> str:
    for seconds in sleeps:
        try:
            sleep(evidence, seconds)
        except TimeoutError:
            return "caught"
    return "done"


@pgqrs.workflow(timeout=0.6)
def limited_pause(evidence: str, seconds: float) -> str:
    sleep(evidence, 0.0)
    pgqrs.pause("wait", resume_after=seconds)
    return "done"


@pgqrs.step
async def doze(evidence: str, seconds: float) -> None:
    note(evidence)
    await asyncio.sleep(seconds)


@pgqrs.workflow(timeout=0.6)
async def limited_async(evidence: str, sleeps: list[float]) -> str:
    for seconds in sleeps:
        await doze(evidence, seconds)
    return "done"


@pgqrs.handler(queue="limited-tasks", timeout=0.4)
def slow_delivery(payload: dict[str, str]) -> None:
    note_message(payload["evidence"])
    time.sleep(30)
