"""`trigger_many` of an async store."""

import asyncio
import contextlib

import pgqrs


@pgqrs.workflow
def doubled(n: int) -> int:
    return 2 * n


async def test_it_hands_out_the_twins_of_the_handles(store):
    handles = await store.trigger_many(doubled, [((n,), {}) for n in range(3)])
    assert all(isinstance(handle, pgqrs.RunHandle) for handle in handles)
    assert [(await handle.record()).input for handle in handles] == [0, 1, 2]
    assert [r.id for r in await store.runs()] == [handle.id for handle in handles][::-1]


async def test_of_nothing_it_makes_nothing(store):
    assert await store.trigger_many(doubled, []) == []


async def test_a_task_that_is_cancelled_leaves_no_run_behind(store):
    await store.trigger(doubled, 1)
    made = 1
    for pause_s in (0, 0.0005, 0.001, 0.002, 0.004, 0.008):
        triggering = asyncio.create_task(store.trigger_many(doubled, [((n,), {}) for n in range(50)]))
        await asyncio.sleep(pause_s)
        triggering.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            made += len(await triggering)
    assert len(await store.runs(limit=1000)) == made
