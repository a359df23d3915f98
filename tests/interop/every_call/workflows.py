"""Workflows, runs and steps, driven by hand."""

import asyncio
import inspect
import os
from datetime import datetime

from look import FIELDS, seconds_from_now, section
from messages import PAYLOADS

import pgqrs


@section
async def workflow_builders(look):
    store = await look.installed()
    new = pgqrs.workflow
    made = await look.see("create", new().name("w").store(store).create)
    await store.queue("has a queue")
    await look.see("named as a queue", new().name("has a queue").store(store).create)
    look.tell("ids", (made.id, made.queue_id))
    await look.see("create twice", new().name("w").store(store).create)
    await look.see("its queue", store.producer, "w")
    message = await look.see("trigger", new().name("w").store(store).trigger({"a": 1}).execute)
    await look.see("trigger none", new().name("none").store(store).trigger(1).execute)
    await look.see("no name", lambda: new().store(store).create())
    await look.see("no store", lambda: new().name("w").create())
    await look.see("trigger without a name", lambda: new().store(store).trigger(1).execute())
    await look.see("trigger without a store", lambda: new().name("w").trigger(1).execute())
    await look.see("with an id", new().name("w").id(7).store(store).trigger(None).execute)
    for label, value in (("list", [1]), ("text", "x"), ("null", None), ("input", {"input": 5})):
        await look.see(f"trigger {label}", new().name("w").store(store).trigger(value).execute)
    await look.see("by name", (await store.get_workflows()).get_by_name, "w")
    await look.see("by a wrong name", (await store.get_workflows()).get_by_name, "none")
    run = await look.see("admin's", look.admin.create_workflow, "of admin", {"a": 1})
    look.tell("admin's run", (run.id(), run.input, run.current_time))
    await look.see("admin's again", look.admin.create_workflow, "of admin", 1)
    await look.see("admin's without argument", look.admin.create_workflow, "plain")
    consumer = await store.consumer("w")
    taken = await consumer.dequeue(9)
    look.tell("taken", [m.payload for m in sorted(taken, key=lambda m: m.id)])
    await look.see("too long an input", new().name("w").store(store).trigger("x" * 2000).execute)
    await look.see("forbidden key", new().name("w").store(store).trigger({"__proto__": 1}).execute)
    await look.see("empty name", new().name("").store(store).create)
    await look.see("long name", new().name("x" * 256).store(store).create)
    look.tell("message again", message.payload)


async def begun(look, name="w", value=None, store=None):
    """A run of a new workflow, its message claimed by a consumer."""
    store = store or look.store
    await pgqrs.workflow().name(name).store(store).create()
    await pgqrs.workflow().name(name).store(store).trigger(value).execute()
    consumer = await store.consumer(name)
    [message] = await consumer.dequeue()
    return await pgqrs.run().message(message).store(store).execute(), message, consumer


@section
async def run_builder(look):
    store = await look.installed()
    run, message, consumer = await begun(look, value={"a": 1})
    new = pgqrs.run
    look.tell("run", (run.id(), run.input, run.current_time))
    again = await look.see("again", new().message(message).store(store).execute)
    look.tell("the same", again.id())
    await look.see("get before", new().message(message).store(store).get)
    await run.start()
    await look.see("get while running", new().message(message).store(store).get)
    waiting = asyncio.ensure_future(new().message(message).store(store).result())
    await asyncio.sleep(0.1)
    await run.success({"b": [2]})
    await look.see("result waits", lambda: waiting)
    await look.see("result", new().message(message).store(store).result)
    await look.see("get", new().message(message).store(store).get)
    await look.see("archive", consumer.archive, message.id)
    await look.see("result when archived", new().message(message).store(store).result)
    failed, message, _ = await begun(look, "f")
    await failed.fail("broke")
    await look.see("result of a failure", new().message(message).store(store).result)
    await look.see("get of a failure", new().message(message).store(store).get)
    nothing, message, _ = await begun(look, "n")
    await nothing.success(None)
    await look.see("result null", new().message(message).store(store).result)
    await look.see("no message", lambda: new().store(store).execute())
    await look.see("no store", lambda: new().message(message).execute())
    await look.see("result without a message", lambda: new().store(store).result())
    await look.see("get without a store", lambda: new().message(message).get())
    await store.queue("plain")
    await pgqrs.produce(store, "plain", "x")
    [plain] = await (await store.consumer("plain")).dequeue()
    await look.see("of a plain message", new().message(plain).store(store).execute)
    await look.see("get of a plain message", new().message(plain).store(store).get)
    fresh = await pgqrs.workflow().name("w").store(store).trigger("early").execute()
    early = await look.see("of a message that nobody holds", new().message(fresh).store(store).execute)
    await look.do("starts it", early.start)
    await look.do("ends it", early.success, 1)


@section
async def runs(look):
    """From each state, each step."""
    await look.installed()
    states = {
        "queued": [],
        "running": ["start"],
        "paused": ["start", "pause"],
        "success": ["start", "success"],
        "error": ["start", "fail"],
    }
    calls = {"start": (), "success": (1,), "complete": (2,), "fail": ("no",), "pause": ("wait", 60)}
    for state, path in states.items():
        for label, arguments in calls.items():
            run, _message, _ = await begun(look, f"{state} {label}")
            for step in path:
                await getattr(run, step)(*calls[step])
            await look.do(f"{state} {label}", getattr(run, label), *arguments)
            [record] = [r for r in await (await look.store.get_workflow_runs()).list() if r.id == run.id()]
            look.tell(f"{state} {label}: then", (record.status, record.output, record.error))
    fresh = await look.see("refresh", run.refresh)
    look.tell("refreshed", (fresh.id(), fresh.input, fresh.current_time))
    timed = run.with_time("2030-01-01T00:00:00Z")
    look.tell("with_time", (timed.id(), timed.current_time, run.current_time, timed is run))
    look.tell("refresh keeps the time", (await timed.refresh()).current_time)
    await look.see("with_time of text", run.with_time, "soon")
    look.tell("ids", await ids_of(look))


async def ids_of(look):
    return sorted(r.id for r in await (await look.store.get_workflow_runs()).list())


@section
async def results(look):
    """What a run and a step keep of their results."""
    await look.installed()
    for n, (label, value) in enumerate(PAYLOADS.items()):
        run, message, _ = await begun(look, f"w{n}")
        await look.do(f"{label} success", run.success, value)
        look.tell(f"{label} result", await pgqrs.run().message(message).store(look.store).get())
    run, message, _ = await begun(look)
    await look.do("fail with a dict", run.fail, {"a": 1})
    await look.see("fail with nothing", run.fail)
    await look.see("pause with no time", run.pause, "x")
    await look.do("pause for half a second", run.pause, "x", 0.5)
    await look.do("pause for a past time", run.pause, "x", -1)


@section
async def steps(look):
    store = await look.installed()
    run, _message, _ = await begun(look)
    await look.see("before the start", run.acquire_step, "early")
    await run.start()
    found = await look.see("acquire", run.acquire_step, "a")
    look.tell("guard", found.guard)
    second = await look.see("acquire again", run.acquire_step, "a")
    await look.see("success", found.guard.success, {"x": 1})
    await look.see("acquire when done", run.acquire_step, "a")
    await look.see("success again", found.guard.success, {"x": 2})
    await look.see("success by the second guard", second.guard.success, {"x": 3})
    await look.see("acquire when done twice", run.acquire_step, "a")
    await look.see("fail after success", found.guard.fail, "no")
    await look.see("acquire when done and failed", run.acquire_step, "a")
    found = await run.acquire_step("b")
    await look.see("fail", found.guard.fail, "broke")
    await look.see("acquire when failed", run.acquire_step, "b")
    await look.see("complete_step", run.complete_step, "c", [1])
    await look.see("acquire completed", run.acquire_step, "c")
    await look.see("complete_step again", run.complete_step, "d", [2])
    await run.acquire_step("d")
    await look.see("complete_step acquired", run.complete_step, "d", 4)
    await look.see("acquire d", run.acquire_step, "d")
    await look.see("fail_step", run.fail_step, "e", "broke")
    await run.acquire_step("f")
    await look.see("fail_step acquired", run.fail_step, "f", "broke")
    await look.see("acquire f", run.acquire_step, "f")
    await run.acquire_step("g")
    await look.see(
        "fail_step with a dict",
        run.fail_step,
        "g",
        {"is_transient": True, "code": "C", "message": "m"},
        "2030-01-01T00:00:00Z",
    )
    await look.see("acquire g", run.acquire_step, "g")
    await look.see("builder", pgqrs.step().run(run).name("h").execute)
    await look.see("builder by id", pgqrs.step().run(run).id("i").execute)
    await look.see(
        "builder with time", pgqrs.step().run(run).name("j").with_time("2030-01-01T00:00:00Z").execute
    )
    await look.see("builder without a run", lambda: pgqrs.step().name("k").execute())
    await look.see("builder without a name", lambda: pgqrs.step().run(run).execute())
    await look.see("builder with a bad time", lambda: pgqrs.step().with_time("soon"))
    records = await (await store.get_workflow_steps()).list()
    for record in sorted(records, key=lambda r: r.step_name):
        look.tell(f"record {record.step_name}", record)
    await run.success(1)
    await look.see("after the end", run.acquire_step, "late")
    await look.see("after the end, done before", run.acquire_step, "c")


@section
async def retries(look):
    """The clock is given."""
    store = await look.installed()
    run, _message, _ = await begun(look)
    await run.start()
    for n in range(6):
        time = f"2030-01-01T00:{n:02}:00+00:00"
        found = await look.see(f"try {n}", run.acquire_step, "a", time)
        if found:
            await look.see(f"fail {n}", found.guard.fail_transient, "CODE", f"broke {n}")
            await look.see(f"too early {n}", run.acquire_step, "a", time)
            [record] = await (await store.get_workflow_steps()).list()
            look.tell(f"record {n}", (record.status, record.error))
            wait = (
                (datetime.fromisoformat(record.retry_at) - datetime.fromisoformat(time)).total_seconds()
                if record.retry_at
                else None
            )
            look.tell(f"waits {n}", wait and 2**n * 0.74 <= wait <= max(2**n * 1.26, 1.01))
    for label, after in (
        ("exact", 30.0),
        ("fraction", 0.5),
        ("whole", 7),
        ("zero", 0),
        ("none", None),
        ("run's time", 30),
    ):
        timed = run.with_time("2030-01-01T00:00:00Z")
        found = await timed.acquire_step(
            label, current_time=timed.current_time if label != "run's time" else None
        )
        await look.see(f"{label}: fail", found.guard.fail_transient, "C", "m", after)
        [record] = [r for r in await (await store.get_workflow_steps()).list() if r.step_name == label]
        look.tell(f"{label}: record", (record.status, record.error))
        if after is not None:
            due = datetime.fromisoformat(record.retry_at)
            look.tell(
                f"{label}: due",
                due.isoformat().removeprefix("2030-01-01T00:")
                if due.year == 2030
                else seconds_from_now(record.retry_at),
            )
        await look.see(f"{label}: at 6", timed.acquire_step, label, "2030-01-01T00:00:06Z")
        await look.see(f"{label}: at 31", timed.acquire_step, label, "2030-01-01T00:00:31Z")
    found = await run.acquire_step("by name")
    await look.see("by name", lambda: found.guard.fail_transient(code="C", message="m", retry_after=60.0))
    await look.see("by name: now", run.acquire_step, "by name")
    await look.see("negative", (await run.acquire_step("n")).guard.fail_transient, "C", "m", -1.0)
    await look.see("acquire at a bad time", run.acquire_step, "x", "soon")


@section
async def lost_claims(look):
    """What a run may still write when somebody else has its message."""
    store = await look.installed()
    run, message, consumer = await begun(look)
    await run.start()
    found = await run.acquire_step("a")
    await consumer.release_messages([message.id])
    [again] = await (await store.consumer("w")).dequeue()
    other = await pgqrs.run().message(again).store(store).execute()
    look.tell("the same run", other.id() == run.id())
    await look.do("step by the loser", found.guard.success, "late")
    await look.do("new step by the loser", run.acquire_step, "b")
    await look.do("success by the loser", run.success, "late")
    await look.do("fail by the loser", run.fail, "late")
    await look.do("pause by the loser", run.pause, "late", 1)


@section
async def calls_return(look):
    """What the calls of a run return, and what kind of awaitable a call gives."""
    store = await look.installed()
    run, _message, consumer = await begun(look)
    await look.see("start", run.start)
    await look.see("pause", run.pause, "x", 0)
    await look.see("complete", run.complete, 1)
    await look.see("success", run.success, 1)
    failing, *_ = await begun(look, "f")
    await look.see("fail", failing.fail, "x")
    for label, call in (("connect", pgqrs.connect(os.environ["PGQRS_DSN"])), ("method", consumer.status()),
                        ("function", pgqrs.produce(store, "w", 1)), ("poll", pgqrs.dequeue().poll(store))):  # fmt: skip
        look.tell(f"{label} gives a coroutine", inspect.iscoroutine(call))
        look.tell(f"{label} gives a future", asyncio.isfuture(call))
        await asyncio.gather(call, return_exceptions=True)


@section
async def records(look):
    """Every attribute of every record, and that none can be set."""
    store = await look.installed()
    queue = await store.queue("q")
    producer, consumer = await store.producer("q"), await store.consumer("q")
    await producer.enqueue({"a": 1})
    [message] = await consumer.dequeue()
    run, *_ = await begun(look, value={"b": 2})
    await run.start()
    await run.acquire_step("s")
    workflow = await (await store.get_workflows()).get_by_name("w")
    [run_record] = await (await store.get_workflow_runs()).list()
    [step_record] = await (await store.get_workflow_steps()).list()
    worker = await (await store.get_workers()).get(consumer.worker_id)
    for record in (queue, message, workflow, run_record, step_record):
        look.tell(type(record).__name__, record)
        await look.see(f"{type(record).__name__} set", setattr, record, "id", 5)
        look.tell(f"{type(record).__name__} equal", record == record)
    look.tell("WorkerInfo", (worker.id, worker.status, worker.queue_id))
    for name in ("vt", "enqueued_at", "dequeued_at", "created_at", "updated_at", "heartbeat_at"):
        times = [
            getattr(r, name)
            for r in (message, run_record, step_record, worker)
            if name in FIELDS[type(r).__name__].split()
        ]
        look.tell(f"shape of {name}", [(type(t).__name__, t[10], t[-6:]) for t in times])
    look.tell("payload is made anew", message.payload is message.payload)
    await look.see("made by a program", pgqrs.QueueInfo)
    look.tell("order of runs", [r.id for r in await (await store.get_workflow_runs()).list()])
