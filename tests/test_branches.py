"""Branches of an async run: each gets its own results in every execution, in whatever order its siblings end.

Every construct that makes concurrency is run under many seeds, with steps that take random time, fail, are retried, and
with runs that are cut off anywhere and go on from what was recorded.
"""

import asyncio
import contextvars
import os
import random

import msgspec
import pytest

import pgqrs
from pgqrs.flows.flow import Refused
from pgqrs.model.writes import RecordedStep
from tests.async_branches import Rows, execute, until_done

SEEDS = int(os.environ.get("PGQRS_BRANCH_SEEDS", "60"))
ITEMS = list("abcdef")
RETRY = pgqrs.StepRetryPolicy(50, pgqrs.BackoffStrategy.fixed(0.001))
chance = random.Random()


async def some_time():
    for _ in range(chance.randrange(6)):
        await asyncio.sleep(0)


@pgqrs.step(retry=RETRY)
async def one(x: str) -> str:
    await some_time()
    if chance.random() < 0.1:
        raise ConnectionError("one")
    return f"1{x}"


@pgqrs.step(retry=RETRY)
async def two(y: str) -> str:
    await some_time()
    if chance.random() < 0.1:
        raise ConnectionError("two")
    return f"2{y}"


@pgqrs.step
def plain(y: str) -> str:
    return f"2{y}"


@pgqrs.step(retry=RETRY)
async def last(told: str) -> str:
    if chance.random() < 0.5:
        raise ConnectionError("last")
    return told


async def branch(x):
    return await two(await one(x))


@pgqrs.workflow
async def gathered() -> dict[str, str]:
    out = dict(zip(ITEMS, await asyncio.gather(*[branch(x) for x in ITEMS]), strict=True))
    await last(str(out))
    return out


@pgqrs.workflow
async def gathered_steps() -> dict[str, str]:
    ones = await asyncio.gather(*[one(x) for x in ITEMS])
    out = dict(zip(ITEMS, await asyncio.gather(*[two(y) for y in ones], return_exceptions=True), strict=True))
    await last(str(out))
    return out


@pgqrs.workflow
async def gathered_with_plain_steps() -> dict[str, str]:
    async def mixed(x):
        return plain(await one(x))

    out = dict(zip(ITEMS, await asyncio.gather(*[mixed(x) for x in ITEMS]), strict=True))
    await last(str(out))
    return out


@pgqrs.workflow
async def completed() -> dict[str, str]:
    out = {}
    for done in asyncio.as_completed([one(x) for x in ITEMS]):
        y = await done
        out[y[1]] = await two(y)
    await last(",".join(out))
    return out


@pgqrs.workflow
async def completed_branches() -> dict[str, str]:
    async def named(x):
        return x, await branch(x)

    out = {}
    for done in asyncio.as_completed([named(x) for x in ITEMS]):
        x, y = await done
        out[x] = y
        await last(",".join(out))
    return out


@pgqrs.workflow
async def waited() -> dict[str, str]:
    todo, out = {asyncio.create_task(one(x)) for x in ITEMS}, {}
    while todo:
        done, todo = await asyncio.wait(todo, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            out[task.result()[1]] = await two(task.result())
    await last(",".join(out))
    return out


@pgqrs.workflow
async def queued() -> dict[str, str]:
    todo, out = asyncio.Queue(), {}
    for x in ITEMS:
        todo.put_nowait(x)

    async def worker():
        while not todo.empty():
            x = todo.get_nowait()
            out[x] = await branch(x)

    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(worker())
    await last(",".join(out))
    return out


@pgqrs.workflow
async def nested() -> dict[str, str]:
    async def pair(x, y):
        return await asyncio.gather(branch(x), branch(y))

    async with asyncio.TaskGroup() as group:
        pairs = [group.create_task(pair(*ITEMS[i : i + 2])) for i in (0, 2, 4)]
    out = dict(zip(ITEMS, [v for p in pairs for v in p.result()], strict=True))
    await last(str(out))
    return out


@pgqrs.workflow
async def shielded_and_limited() -> dict[str, str]:
    limit = asyncio.Semaphore(2)
    order = []

    async def limited(x):
        async with limit:
            y = await asyncio.shield(branch(x))
            order.append(x)
            return y

    tasks = [asyncio.ensure_future(limited(x)) for x in ITEMS]
    out = {x: await t for x, t in zip(ITEMS, tasks, strict=True)}
    await last(",".join(order))
    return out


@pgqrs.workflow
async def called_back() -> dict[str, str]:
    """Tasks that a callback makes."""
    loop, out, over = asyncio.get_running_loop(), {}, asyncio.Event()

    def then(task):
        async def second():
            out[task.result()[1]] = await two(task.result())
            if len(out) == len(ITEMS):
                over.set()

        seconds.append(loop.create_task(second()))

    seconds = []
    for x in ITEMS:
        asyncio.create_task(one(x)).add_done_callback(then)
    await over.wait()
    await last(",".join(out))
    return out


@pgqrs.workflow
async def over_a_set() -> dict[str, str]:
    names = list(ITEMS)
    random.shuffle(names)  # what another hash seed does
    out = dict(zip(names, await asyncio.gather(*[two(y) for y in [f"1{x}" for x in names]]), strict=True))
    await last(str(sorted(out.items())))
    return out


EVERY = [
    gathered,
    gathered_steps,
    gathered_with_plain_steps,
    completed,
    completed_branches,
    waited,
    queued,
    nested,
    shielded_and_limited,
    called_back,
]


@pytest.mark.slow
@pytest.mark.parametrize("workflow", EVERY, ids=lambda f: f.__name__)
def test_each_branch_gets_its_own_results_whatever_ends_first(workflow):
    for seed in range(SEEDS):
        chance.seed(seed)
        result, _ = until_done(workflow, seed)
        assert msgspec.json.decode(result) == {x: f"21{x}" for x in ITEMS}, f"seed {seed}"


@pytest.mark.parametrize("workflow", EVERY, ids=lambda f: f.__name__)
def test_a_replay_of_all_that_was_recorded_runs_no_body_and_ends_the_same(workflow):
    for seed in range(10):
        chance.seed(seed)
        result, rows = until_done(workflow, seed)
        ran = len(rows.bodies)
        assert execute(workflow, rows) == result
        assert len(rows.bodies) == ran


def test_a_walk_over_a_set_in_another_order_gives_each_member_its_own_result():
    chance.seed(1)
    random.seed(1)
    result, rows = until_done(over_a_set, 1, cut=0.0)
    ran = len(rows.bodies)
    for _ in range(10):
        again = execute(over_a_set, rows)
        assert msgspec.json.decode(again) == msgspec.json.decode(result) == {x: f"21{x}" for x in ITEMS}
    assert len(rows.bodies) == ran


# Cancelled steps


@pgqrs.step
async def never(x: str) -> str:
    await asyncio.Event().wait()
    return x


@pgqrs.workflow
async def too_slow() -> str:
    try:
        await asyncio.wait_for(never("a"), 0.02)
    except TimeoutError:
        return await last("gave up")
    return "?"


def test_a_step_that_its_workflow_cancelled_is_cancelled_again_on_a_replay():
    chance.seed(3)
    result, rows = until_done(too_slow, 3, cut=0.0)
    assert msgspec.json.decode(result) == "gave up"
    assert rows.bodies.count("never") == 1
    assert rows.steps["never"].status == "ERROR"
    assert execute(too_slow, rows) == result
    assert rows.bodies.count("never") == 1


def test_nothing_waits_for_a_step_that_its_workflow_cancelled(monkeypatch):
    monkeypatch.setattr("pgqrs.flows.handover.STUCK_S", 0.05)

    @pgqrs.workflow
    async def work() -> list[str]:
        given_up = asyncio.create_task(never("a"))
        await asyncio.sleep(0.01)
        given_up.cancel()
        await asyncio.wait([given_up])
        return list(await asyncio.gather(one("a"), one("b")))

    rows = Rows()
    chance.seed(1)
    assert execute(work, rows) == b'["1a","1b"]'
    assert execute(work, rows) == b'["1a","1b"]'
    assert rows.bodies.count("never") == 1


def test_a_step_whose_body_cancels_itself_has_failed():
    @pgqrs.step
    async def cancels_itself():
        raise asyncio.CancelledError

    @pgqrs.workflow
    async def work():
        try:
            await cancels_itself()
        except Exception as e:
            return type(e).__name__
        return "?"

    rows = Rows()
    first = execute(work, rows)
    assert execute(work, rows) == first != b'"?"'


def test_what_is_recorded_as_cancelled_and_no_longer_is_ends_the_replay_with_a_word(monkeypatch):
    monkeypatch.setattr("pgqrs.flows.handover.STUCK_S", 0.05)
    impatient = True

    @pgqrs.workflow
    async def work():
        if impatient:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(never("a"), 0.02)
        else:
            await never("a")

    rows = Rows()
    execute(work, rows)
    impatient = False
    with pytest.raises(Refused, match=r"'never' was the run's number 1 to end.*cancelled again"):
        execute(work, rows)


def test_a_recorded_result_that_nothing_asks_for_ends_the_replay_with_a_word(monkeypatch):
    monkeypatch.setattr("pgqrs.flows.handover.STUCK_S", 0.05)
    names = ["a", "b"]

    @pgqrs.workflow
    async def work():
        await asyncio.gather(*[branch(x) for x in names])

    chance.seed(5)
    _, rows = until_done(work, 5)
    names = ["b"]
    with pytest.raises(Refused, match=r"same|leads to"):
        execute(work, rows)


# Retries beside siblings


def test_a_retry_repeats_no_sibling_that_is_under_way():
    started = []

    @pgqrs.step(retry=pgqrs.StepRetryPolicy(5, pgqrs.BackoffStrategy.fixed(0.005)))
    async def flaky():
        started.append("flaky")
        if started.count("flaky") < 4:
            raise ConnectionError
        return 1

    @pgqrs.step
    async def upload(i: int) -> int:
        started.append(i)
        await asyncio.sleep(0.1)
        return i

    @pgqrs.workflow
    async def both() -> list[int]:
        return list(await asyncio.gather(flaky(), upload(1), upload(2)))

    assert until_done(both, 0, cut=0.0)[0] == b"[1,1,2]"
    assert (started.count(1), started.count(2), started.count("flaky")) == (1, 1, 4)


def test_a_step_that_waits_for_its_next_try_alone_leaves_the_worker():
    @pgqrs.step(retry=RETRY)
    async def flaky():
        raise ConnectionError

    @pgqrs.workflow
    async def work():
        await asyncio.gather(flaky(), asyncio.sleep(0))

    rows = Rows()
    with pytest.raises(pgqrs.flows.flow.Suspended):
        execute(work, rows)
    assert rows.steps["flaky"].status == "RETRY"


# Where a step is called


def test_an_async_steps_place_is_where_it_is_called_not_where_it_is_awaited():
    @pgqrs.workflow
    async def work() -> list[str]:
        first, second = plainly("a"), plainly("b")
        return [await second, await first]

    @pgqrs.step
    async def plainly(x: str) -> str:
        return x

    rows = Rows()
    assert execute(work, rows) == b'["b","a"]'
    assert [(s.name, s.place.count, s.ended) for s in rows.steps.values()] == [
        ("plainly#2", 1, 1),
        ("plainly", 0, 2),
    ]
    assert execute(work, rows) == b'["b","a"]'


def test_tasks_of_a_steps_body_are_part_of_that_body():
    @pgqrs.step
    async def inner() -> int:
        return 1

    @pgqrs.step
    async def outer() -> int:
        return sum(await asyncio.gather(inner(), inner()))

    @pgqrs.workflow
    async def work() -> int:
        return await outer()

    rows = Rows()
    assert execute(work, rows) == b"2"
    assert list(rows.steps) == ["outer"]


def test_a_task_that_shares_its_context_with_others_is_recorded_all_the_same():
    @pgqrs.workflow
    async def work() -> list[str]:
        shared = contextvars.copy_context()
        tasks = [asyncio.create_task(branch(x), context=shared) for x in ITEMS]
        return [await t for t in tasks]

    for seed in range(10):
        chance.seed(seed)
        result, rows = until_done(work, seed)
        assert msgspec.json.decode(result) == [f"21{x}" for x in ITEMS]
        assert len(rows.steps) == 2 * len(ITEMS)


def test_a_task_factory_of_the_programs_own_takes_nothing_from_its_branches():
    @pgqrs.workflow
    async def work() -> list[str]:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(lambda loop, coro, **more: asyncio.Task(coro, loop=loop, **more))
        return list(await asyncio.gather(*[branch(x) for x in ITEMS]))

    for seed in range(10):
        chance.seed(seed)
        assert msgspec.json.decode(until_done(work, seed)[0]) == [f"21{x}" for x in ITEMS]


def test_a_plain_step_in_a_callback_says_what_to_do():
    @pgqrs.workflow
    async def work() -> str:
        told: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def call():
            try:
                plain("a")
            except pgqrs.ValidationError as e:
                told.set_result(str(e))

        asyncio.get_running_loop().call_soon(call)
        return await told

    assert b"call it from a coroutine" in execute(work, Rows())


# Runs of older versions


def test_a_run_of_an_older_version_goes_on_where_its_steps_cannot_be_mixed_up():
    @pgqrs.workflow
    async def work() -> list[str]:
        return list(await asyncio.gather(one("a"), one("b"), two("c")))

    rows = Rows()
    rows.steps = {"one": RecordedStep("one", 0, "SUCCESS", b'"1a"', None, 0)}
    chance.seed(0)
    result, _ = until_done(work, 0, cut=0.0, rows=rows)
    assert result == b'["1a","1b","2c"]'


def test_a_run_of_an_older_version_is_refused_where_two_tasks_could_get_each_others_result():
    @pgqrs.workflow
    async def work() -> list[str]:
        return list(await asyncio.gather(branch("a"), branch("b")))

    rows = Rows()
    rows.steps = {"one": RecordedStep("one", 0, "SUCCESS", b'"1b"', None, 0)}
    with pytest.raises(Refused, match="older version"):
        execute(work, rows)
