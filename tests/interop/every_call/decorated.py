"""The decorators."""

import inspect

from look import seconds_from_now, section
from polling import polled
from workflows import begun

import pgqrs
from pgqrs.decorators import step, workflow


@section
async def decorated(look):
    await look.installed()
    calls = []

    @step
    async def add(ctx, a, b=1):
        """Adds."""
        calls.append((a, b))
        return a + b

    @step
    async def outer(ctx, a):
        return await add(ctx, a) * 10

    @workflow(name="sums")
    async def sums(ctx, given):
        """Sums."""
        return [await add(ctx, given), await add(ctx, 99), await outer(ctx, 3)]

    look.tell("step", (add.__name__, add.__doc__, inspect.iscoroutinefunction(add)))
    look.tell(
        "workflow",
        (
            type(sums).__name__,
            sums.name,
            inspect.iscoroutinefunction(sums.run),
            sums.run.__doc__,
            sums.run.__name__,
        ),
    )
    look.tell("same class", pgqrs.WorkflowDef is type(sums))
    for label, value in (
        ("number", 1),
        ("null", None),
        ("zero", 0),
        ("dict", {"a": 1}),
        ("input", {"input": 7}),
    ):
        run, message, _ = await begun(look, f"w {label}", value)
        await look.see(f"{label} input", lambda run=run: sums(run))
        calls.clear()
    run, message, _consumer = await begun(look, "w", 1)
    await look.see("with an argument", sums, run, 5)
    look.tell("called", calls)
    await look.see("again", sums, run, 6)
    await look.see("again, fresh", sums, await pgqrs.run().message(message).store(look.store).execute())
    look.tell("called once", calls)
    look.tell(
        "recorded",
        sorted(
            (s.step_name, s.output)
            for s in await (await look.store.get_workflow_steps()).list()
            if s.run_id == run.id()
        ),
    )
    await look.see("result", pgqrs.run().message(message).store(look.store).result)
    await look.see("step without a run", add, 1, 2)
    await look.see("workflow without a run", sums, 1)
    await look.see("no name", lambda: workflow(name=""))
    await look.see("a number for a name", lambda: workflow(name=1))
    await look.see("name by position", lambda: workflow("x"))


@section
async def decorated_failures(look):
    await look.installed()

    def raising(error):
        @step
        async def failing(ctx):
            raise error

        @workflow(name="fails")
        async def fails(ctx, given):
            return await failing(ctx)

        return fails

    with_code = pgqrs.TransientStepError("wait")
    with_code.code, with_code.retry_after = "BUSY", 30.0
    for label, error in (("plain", ValueError("broke")), ("transient", pgqrs.TransientStepError("wait")), ("with code", with_code),
                         ("paused", pgqrs.PausedError("later")), ("not ready", pgqrs.StepNotReadyError("soon")),
                         ("exhausted", pgqrs.RetriesExhaustedError("over")), ("other", pgqrs.ValidationError("bad"))):  # fmt: skip
        run, message, _ = await begun(look, label, 1)
        await look.see(f"{label}", raising(error), run)
        [record] = [r for r in await (await look.store.get_workflow_runs()).list() if r.id == run.id()]
        look.tell(f"{label}: run", (record.status, record.error))
        steps = [s for s in await (await look.store.get_workflow_steps()).list() if s.run_id == run.id()]
        look.tell(
            f"{label}: step",
            [(s.status, s.error, s.retry_at and seconds_from_now(s.retry_at) in (1, 2, 30)) for s in steps],
        )
        await look.see(f"{label}: again", raising(error), run)
        if label != "with code":
            await look.see(f"{label}: get", pgqrs.run().message(message).store(look.store).get)
    run, *_ = await begun(look, "timed", 1)
    timed = run.with_time("2030-01-01T00:00:00Z")
    await look.see("timed", raising(with_code), timed)
    await look.see("timed, too early", raising(with_code), run.with_time("2030-01-01T00:00:29Z"))
    await look.see("timed, due", raising(with_code), run.with_time("2030-01-01T00:00:31Z"))

    @workflow(name="unstorable")
    async def unstorable(ctx, given):
        return object()

    run, *_ = await begun(look, "unstorable", 1)
    await look.do("unstorable result", unstorable, run)
    [record] = [r for r in await (await look.store.get_workflow_runs()).list() if r.id == run.id()]
    look.tell("unstorable result: run", record.status)


@section
async def polling_workflows(look):
    store = await look.installed()
    seen = []

    @step
    async def note(ctx, given):
        seen.append(given)
        return given

    @workflow(name="w")
    async def noting(ctx, given):
        look.tell(f"run {given}", (type(ctx).__name__, ctx.input, ctx.current_time))
        if given == "bad":
            raise ValueError("broke")
        return await note(ctx, given)

    await pgqrs.workflow().name("w").store(store).create()

    async def trigger(value):
        return await pgqrs.workflow().name("w").store(store).trigger(value).execute()

    messages = [await trigger("a"), await trigger("b")]
    consumer = await store.consumer("w")
    poll = pgqrs.dequeue().worker(consumer).poll_interval(20).handle_workflow(noting)
    await polled(look, "workflows", store, consumer, poll, lambda: len(seen) == 2)
    look.tell("seen", sorted(seen))
    for message in messages:
        await look.see(f"result {message.payload}", pgqrs.run().message(message).store(store).get)
    look.tell("live", await (await store.get_messages()).count())
    bad = await trigger("bad")
    await look.see("bad", pgqrs.dequeue().from_queue("w").handle_workflow(noting).poll, store)
    await look.see("bad: get", pgqrs.run().message(bad).store(store).get)
    look.tell("bad: live", await (await store.get_messages()).count())
    look.tell(
        "runs",
        sorted(
            (r.id, r.status, r.input, r.output, r.error)
            for r in await (await store.get_workflow_runs()).list()
        ),
    )


@section
async def polling_retries(look):
    """A run whose step is tried again, under a poll."""
    store = await look.installed()
    tries = []

    @step
    async def flaky(ctx):
        tries.append(1)
        if len(tries) == 1:
            error = pgqrs.TransientStepError("wait")
            error.retry_after = 0.0
            raise error
        return "done"

    @workflow(name="w")
    async def flow(ctx, given):
        return await flaky(ctx)

    await pgqrs.workflow().name("w").store(store).create()
    message = await pgqrs.workflow().name("w").store(store).trigger(1).execute()
    await look.see("first", pgqrs.dequeue().from_queue("w").handle_workflow(flow).poll, store)
    [record] = await (await store.get_workflow_runs()).list()
    look.tell("waits", record.status)
    consumer = await store.consumer("w")
    poll = pgqrs.dequeue().worker(consumer).poll_interval(20).handle_workflow(flow)
    await polled(look, "second", store, consumer, poll, lambda: len(tries) == 2)
    await look.see("result", pgqrs.run().message(message).store(store).get)
    archived = await (await store.get_messages()).list_archived_by_queue(1)
    look.tell("deliveries", [m.read_ct for m in archived])
