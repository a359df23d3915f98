"""`pgqrs.decorators`: functions that take their `Run` first. What a step returned once is returned ever after."""

import asyncio
import inspect

import pytest

import pgqrs
from pgqrs import WorkflowStatus
from pgqrs.decorators import WorkflowDef, step, workflow
from tests.surface.given import a_run, a_triggered, at, moment, until

pytestmark = pytest.mark.backends("sqlite", "postgres")


async def statuses(store):
    """Of the steps, by name."""
    return {s.step_name: s.status for s in await (await store.get_workflow_steps()).list()}


# What the decorators give


def test_a_workflow_becomes_a_callable_definition():
    @workflow(name="job")
    async def job(ctx, n): ...

    assert isinstance(job, WorkflowDef)
    assert WorkflowDef is pgqrs.WorkflowDef
    assert job.name == "job"
    assert callable(job.run)
    assert inspect.iscoroutinefunction(job.run)
    assert repr(job) == "WorkflowDef('job')"


def test_a_step_stays_a_function_of_its_name():
    @step
    async def double(ctx, n):
        """Twice as much."""

    assert inspect.iscoroutinefunction(double)
    assert (double.__name__, double.__doc__) == ("double", "Twice as much.")

    @step
    def plain(ctx): ...

    assert not inspect.iscoroutinefunction(plain)


@pytest.mark.parametrize("name,error", [("", ValueError), (None, TypeError), (5, TypeError)])
def test_a_workflow_needs_a_name(name, error):
    with pytest.raises(error, match="Workflow name"):
        workflow(name=name)


async def test_the_first_argument_is_the_run():
    @workflow(name="job")
    async def job(ctx): ...

    @step
    async def one(ctx): ...

    for call in (job, one):
        with pytest.raises(TypeError, match="must be a Run instance"):
            await call("no run")


# Steps


async def test_a_step_s_body_is_executed_once_on_a_run(store):
    run = await a_run(store)
    bodies = []

    @step
    async def double(ctx, n):
        bodies.append(n)
        return n * 2

    assert await double(run, 4) == 8
    assert await double(run, 4) == 8
    assert await double(run, 100) == 8, "a step is known by its name, whatever its arguments"
    assert bodies == [4]
    assert await statuses(store) == {"double": WorkflowStatus.Success}


async def test_on_another_run_it_is_executed_again(store):
    bodies = []

    @step
    async def count(ctx):
        bodies.append(ctx.id())
        return len(bodies)

    one = await a_run(store)
    message = await pgqrs.workflow().name("job").store(store).trigger().execute()
    other = await pgqrs.run().message(message).store(store).execute()
    assert [await count(one), await count(other), await count(one)] == [1, 2, 1]


async def test_steps_may_call_steps(store):
    run = await a_run(store)

    @step
    async def inner(ctx, n):
        return n + 1

    @step
    async def outer(ctx, n):
        return await inner(ctx, n) * 10

    assert await outer(run, 1) == 20
    assert await statuses(store) == {"inner": WorkflowStatus.Success, "outer": WorkflowStatus.Success}


async def test_steps_may_run_beside_each_other(store):
    run = await a_run(store)

    def named(name):
        async def body(ctx):
            await asyncio.sleep(0)
            return name

        body.__name__ = name
        return step(body)

    steps = [named(f"s{n}") for n in range(8)]
    assert await asyncio.gather(*(s(run) for s in steps)) == [f"s{n}" for n in range(8)]
    assert len(await statuses(store)) == 8


async def test_keyword_arguments_and_defaults_reach_the_body(store):
    run = await a_run(store)

    @step
    async def add(ctx, a, b=10, *, c=100):
        return a + b + c

    assert await add(run, 1, c=5) == 16


async def test_an_exception_fails_the_step_for_good_and_goes_on(store):
    run = await a_run(store)
    raised = ValueError("broken")

    @step
    async def fails(ctx):
        raise raised

    with pytest.raises(ValueError) as caught:
        await fails(run)
    assert caught.value is raised
    [record] = await (await store.get_workflow_steps()).list()
    assert record.status is WorkflowStatus.Error
    assert record.error == {"is_transient": False, "code": "NON_RETRYABLE", "message": "broken"}
    with pytest.raises(pgqrs.RetriesExhaustedError, match="broken"):
        await fails(run)


@pytest.mark.parametrize(
    "text", ["nul \0", "half \ud800", "x" * 2_000_000], ids=["nul", "half a pair", "long"]
)
async def test_an_exception_with_an_odd_text_fails_step_and_run_as_any_other(store, text):
    run = await a_run(store, 1)
    raised = ValueError(text)

    @step
    async def fails(ctx):
        raise raised

    @workflow(name="job")
    async def job(ctx, n):
        return await fails(ctx)

    with pytest.raises(ValueError) as caught:
        await job(run)
    assert caught.value is raised
    assert await statuses(store) == {"fails": WorkflowStatus.Error}
    assert (await run.refresh()).status is WorkflowStatus.Error


async def test_a_transient_error_fails_it_until_its_retry(store):
    run = (await a_run(store)).with_time(at(0))
    tries = []

    @step
    async def flaky(ctx):
        tries.append(1)
        if len(tries) == 1:
            raise pgqrs.TransientStepError("busy", code="BUSY", retry_after=30)
        return "done"

    with pytest.raises(pgqrs.TransientStepError, match="busy"):
        await flaky(run)
    [record] = await (await store.get_workflow_steps()).list()
    assert (record.status, record.error["code"], record.error["is_transient"]) == (
        WorkflowStatus.Error,
        "BUSY",
        True,
    )
    assert abs((moment(record.retry_at) - moment(at(30))).total_seconds()) < 0.01
    with pytest.raises(pgqrs.StepNotReadyError):
        await flaky(run.with_time(at(29)))
    assert len(tries) == 1
    assert await flaky(run.with_time(at(31))) == "done"


async def test_its_attributes_may_be_assigned_and_may_be_missing(store):
    run = await a_run(store)

    @step
    async def assigned(ctx):
        error = pgqrs.TransientStepError("busy")
        error.code = "MINE"
        error.retry_after = 600
        raise error

    @step
    async def bare(ctx):
        raise pgqrs.TransientStepError("busy")

    for flaky in (assigned, bare):
        with pytest.raises(pgqrs.TransientStepError):
            await flaky(run)
    records = {s.step_name: s for s in await (await store.get_workflow_steps()).list()}
    assert records["assigned"].error["code"] == "MINE"
    assert records["bare"].error["code"] == "TRANSIENT_ERROR"
    assert records["bare"].retry_at is not None


@pytest.mark.parametrize("kind", [pgqrs.PausedError, pgqrs.StepNotReadyError, pgqrs.RetriesExhaustedError])
async def test_what_has_a_meaning_of_its_own_passes_through(store, kind):
    message = await a_triggered(store)
    run = await pgqrs.run().message(message).store(store).execute()
    raised = kind("on its way")

    @step
    async def one(ctx):
        raise raised

    @workflow(name="job")
    async def job(ctx, _):
        return await one(ctx)

    with pytest.raises(kind) as caught:
        await job(run)
    assert caught.value is raised
    assert await statuses(store) == {"one": WorkflowStatus.Running}
    assert (await run.refresh()).status is WorkflowStatus.Running


async def test_a_transient_error_leaves_the_workflow_running(store):
    run = await a_run(store)

    @step
    async def flaky(ctx):
        raise pgqrs.TransientStepError("busy")

    @workflow(name="job")
    async def job(ctx, _):
        return await flaky(ctx)

    with pytest.raises(pgqrs.TransientStepError):
        await job(run)
    assert (await run.refresh()).status is WorkflowStatus.Running


async def test_a_result_that_cannot_be_stored_fails_the_step(store):
    run = await a_run(store)

    @step
    async def odd(ctx):
        return object()

    with pytest.raises(pgqrs.SerializationError, match="the result of step 'odd'"):
        await odd(run)
    assert await statuses(store) == {"odd": WorkflowStatus.Error}


# Workflows


async def test_a_workflow_starts_its_run_and_records_how_it_ended(store):
    message = await a_triggered(store, 4)
    run = await pgqrs.run().message(message).store(store).execute()
    seen = []

    @workflow(name="job")
    async def job(ctx, n):
        seen.append((await ctx.refresh()).status)
        return {"twice": n * 2}

    assert await job(run) == {"twice": 8}
    assert seen == [WorkflowStatus.Running]
    assert await pgqrs.run().message(message).store(store).get() == {"twice": 8}


async def test_its_input_is_the_run_s_unless_one_is_passed(store):
    run = await a_run(store, {"n": 1})

    @workflow(name="job")
    async def job(ctx, input):
        return input

    assert await job(run, "passed") == "passed"
    message = await pgqrs.workflow().name("job").store(store).trigger({"n": 2}).execute()
    assert await job(await pgqrs.run().message(message).store(store).execute()) == {"n": 2}


@pytest.mark.parametrize("input", [0, "", False, [], {}, None], ids=repr)
async def test_an_input_that_is_false_is_passed_all_the_same(store, input):
    run = await a_run(store, input)

    @workflow(name="job")
    async def job(ctx, input):
        return [input]

    assert await job(run) == [input]


async def test_a_second_invocation_executes_no_step_again(store):
    run = await a_run(store, 1)
    bodies = []

    @step
    async def first(ctx, n):
        bodies.append("first")
        return n + 1

    @step
    async def second(ctx, n):
        bodies.append("second")
        if bodies.count("second") == 1:
            raise pgqrs.TransientStepError("once", retry_after=0)
        return n * 10

    @workflow(name="job")
    async def job(ctx, n):
        return await second(ctx, await first(ctx, n))

    with pytest.raises(pgqrs.TransientStepError):
        await job(run)
    assert await job(run) == 20
    assert bodies == ["first", "second", "second"]


async def test_on_a_run_that_succeeded_it_returns_the_result_and_is_not_executed(store):
    run = await a_run(store, 1)
    bodies = []

    @workflow(name="job")
    async def job(ctx, n):
        bodies.append(n)
        return {"n": n}

    assert await job(run) == {"n": 1}
    assert await job(run) == {"n": 1}
    assert await job(await run.refresh(), 99) == {"n": 1}
    assert bodies == [1]


async def test_on_a_run_that_failed_or_was_cancelled_it_raises(store):
    @workflow(name="job")
    async def job(ctx, n):
        raise AssertionError("not to be called")

    run = await a_run(store, 1)
    await run.fail("no")
    with pytest.raises(pgqrs.ValidationError, match="terminal ERROR"):
        await job(run)
    message = await pgqrs.workflow().name("job").store(store).trigger(1).execute()
    cancelled = await pgqrs.run().message(message).store(store).execute()
    await cancelled.cancel()
    with pytest.raises(pgqrs.ValidationError, match="terminal CANCELLED"):
        await job(cancelled)


async def test_its_exception_fails_the_run_and_goes_on(store):
    run = await a_run(store, 1)
    raised = ValueError("broken")

    @workflow(name="job")
    async def job(ctx, n):
        raise raised

    with pytest.raises(ValueError) as caught:
        await job(run)
    assert caught.value is raised
    [record] = await (await store.get_workflow_runs()).list()
    assert record.status is WorkflowStatus.Error
    assert "broken" in str(record.error)


async def test_what_is_no_exception_leaves_the_run_as_it_is(store):
    run = await a_run(store, 1)

    @step
    async def stuck(ctx):
        await asyncio.sleep(60)

    @workflow(name="job")
    async def job(ctx, n):
        await stuck(ctx)

    running = asyncio.create_task(job(run))

    async def has_begun():
        return await statuses(store) == {"stuck": WorkflowStatus.Running}

    await until(has_begun)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (await run.refresh()).status is WorkflowStatus.Running
    assert await statuses(store) == {"stuck": WorkflowStatus.Running}


async def test_a_paused_run_is_resumed_by_calling_its_workflow(store):
    run = await a_run(store, 1)
    await run.pause("wait", 600)

    @workflow(name="job")
    async def job(ctx, n):
        return n

    assert await job(run) == 1


async def test_the_name_is_not_compared_with_the_run_s(store):
    run = await a_run(store, 1)

    @workflow(name="quite another")
    async def job(ctx, n):
        return n

    assert await job(run) == 1


async def test_a_result_that_cannot_be_stored_fails_the_run(store):
    run = await a_run(store, 1)

    @workflow(name="job")
    async def job(ctx, n):
        return object()

    with pytest.raises(pgqrs.SerializationError):
        await job(run)
    assert (await run.refresh()).status is WorkflowStatus.Error


async def test_a_workflow_can_be_triggered_by_what_it_is_named(store):
    @workflow(name="job")
    async def job(ctx, n):
        return n

    await pgqrs.workflow().name(job.name).store(store).create()
    message = await pgqrs.workflow().name(job.name).store(store).trigger(3).execute()
    assert await job(await pgqrs.run().message(message).store(store).execute()) == 3


# Plain functions


def test_plain_functions_work_with_a_blocking_run(blocking):
    bodies = []

    @step
    def double(ctx, n):
        bodies.append(n)
        return n * 2

    @workflow(name="job")
    def job(ctx, n):
        return double(ctx, n) + double(ctx, n)

    run = pgqrs.admin(blocking).create_workflow("job", 4)
    assert job(run) == 16
    assert job(run) == 16
    assert bodies == [4]
    assert run.refresh().status is WorkflowStatus.Success


async def test_async_functions_work_with_a_blocking_run_too(blocking):
    @step
    async def double(ctx, n):
        return n * 2

    @workflow(name="job")
    async def job(ctx, n):
        return await double(ctx, n)

    assert await job(pgqrs.admin(blocking).create_workflow("job", 4)) == 8


async def test_a_plain_function_says_that_it_cannot_await_an_async_run(store):
    run = await a_run(store, 4)

    @step
    def double(ctx, n):
        return n * 2

    with pytest.raises(pgqrs.ValidationError, match="cannot wait for async code"):
        double(run, 4)
