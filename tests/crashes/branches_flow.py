"""Async runs with branches, for workers that are killed under them. Each result says whose it is."""

import asyncio
import random

import pgqrs

ITEMS = list("abcdef")
RETRY = pgqrs.StepRetryPolicy(9, pgqrs.BackoffStrategy.fixed(0.02))


@pgqrs.step(retry=RETRY)
async def one(who: str, x: str) -> str:
    await asyncio.sleep(random.random() * 0.15)
    if random.random() < 0.08:
        raise ConnectionError("one")
    return f"1{who}{x}"


@pgqrs.step(retry=RETRY)
async def two(who: str, y: str) -> str:
    await asyncio.sleep(random.random() * 0.01)
    if random.random() < 0.08:
        raise ConnectionError("two")
    return f"2{y}"


@pgqrs.step
def plain(who: str, told: str) -> str:
    return told


async def branch(who: str, x: str) -> str:
    return await two(who, await one(who, x))


@pgqrs.workflow
async def gathered(who: str) -> dict[str, str]:
    out = dict(zip(ITEMS, await asyncio.gather(*[branch(who, x) for x in ITEMS]), strict=True))
    plain(who, str(out))
    return out


@pgqrs.workflow
async def completed(who: str) -> dict[str, str]:
    out = {}
    for done in asyncio.as_completed([one(who, x) for x in ITEMS]):
        y = await done
        out[y[-1]] = await two(who, y)
        plain(who, ",".join(out))
    return out


@pgqrs.workflow
async def waited(who: str) -> dict[str, str]:
    todo, out = {asyncio.create_task(one(who, x)) for x in ITEMS}, {}
    while todo:
        done, todo = await asyncio.wait(todo, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            out[task.result()[-1]] = await two(who, task.result())
    return out


@pgqrs.workflow
async def queued(who: str) -> dict[str, str]:
    todo: asyncio.Queue[str] = asyncio.Queue()
    out = {}
    for x in ITEMS:
        todo.put_nowait(x)

    async def worker() -> None:
        while not todo.empty():
            x = todo.get_nowait()
            out[x] = await branch(who, x)
            plain(who, ",".join(out))

    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(worker())
    return out
