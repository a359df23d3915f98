"""A run as the code inside it sees it, with a list for a journal and a dict for a history."""

import asyncio
import contextlib
import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import msgspec
import pytest

import pgqrs
from pgqrs import errors
from pgqrs.flows import flow
from pgqrs.flows.definitions import definition_of
from pgqrs.flows.flow import Clocks, Context, History, Refused, Suspended
from pgqrs.flows.retry import BackoffStrategy, StepRetryPolicy
from pgqrs.model.states import WorkflowStatus
from pgqrs.model.writes import RecordedStep


class Journal:
    """Remembers the order of everything, and what to hand back on a replay."""

    def __init__(self):
        self.events = []
        self.steps = []

    def begin(self, call):
        self.events.append(("begin", call.name))
        self.call = call

    def record(self, step):
        self.events.append(("record", step.name))
        self.steps.append(step)
        if step.status is WorkflowStatus.Paused or step.retry_in_s is not None:
            raise Suspended

    def recorded(self):
        """As the store would hand it out again."""
        rows = {}
        for s in self.steps:
            again = s.recorded
            rows[s.name] = msgspec.structs.replace(
                again, status="SUCCESS" if again.status == "PAUSED" else again.status
            )
        return tuple(rows.values())


class AsyncJournal(Journal):
    """`gate` is what a begin waits for."""

    gate = None

    async def begin(self, call):
        super().begin(call)
        if self.gate is not None:
            await self.gate(call)
        await asyncio.sleep(0)

    def tried(self, step):
        self.events.append(("tried", step.name))
        self.steps.append(step)

    leaving = False

    def wait(self, awaitable):
        iterator = awaitable.__await__()
        try:
            while True:
                next(iterator)
        except StopIteration as e:
            return e.value


def context_of(function, journal, steps, attempt=1, limit=flow.PAYLOAD_BYTES_MAX, database=""):
    definition = definition_of(function)
    clocks = Clocks(iter(range(10**6)).__next__, lambda: 0.0, lambda: 0.5)
    ordered = not definition.is_async
    return Context(definition, 42, attempt, History(steps, ordered), journal, clocks, limit, database)


def run(function, *steps, payload=b'{"input": null}', journal=None, **more):
    """(result as JSON, journal)."""
    journal = journal or Journal()
    definition = definition_of(function)
    context = context_of(function, journal, steps, **more)
    return flow.execute(definition, context, payload), journal


def run_async(function, *steps, payload=b'{"input": null}', journal=None, **more):
    journal = journal or AsyncJournal()

    async def main():
        return await flow.execute_async(
            definition_of(function), context_of(function, journal, steps, **more), payload
        )

    return asyncio.run(main()), journal


def success(name, position, output=b"1"):
    return RecordedStep(name, position, "SUCCESS", output, None, 0)


bodies = []


@pytest.fixture(autouse=True)
def no_bodies():
    bodies.clear()


@pgqrs.step
def double(x):
    bodies.append(x)
    return x * 2


@pgqrs.step
def other(x):
    bodies.append(x)
    return x


@pgqrs.step
def boom(x=0):
    bodies.append(x)
    raise ValueError("no", x)


# Order


def test_a_steps_body_starts_when_begin_has_returned_and_is_recorded_when_it_ends():
    order = []

    class Watching(Journal):
        def begin(self, call):
            order.append(f"begin {call.name}")

        def record(self, step):
            order.append(f"record {step.name}")

    @pgqrs.step
    def one():
        order.append("body")

    @pgqrs.workflow
    def work():
        one()
        order.append("between")
        one()

    run(work, journal=Watching())
    assert order == ["begin one", "body", "record one", "between", "begin one#2", "body", "record one#2"]


def test_a_step_has_the_time_and_the_cpu_of_its_own_body():
    passed = {"s": 5.0, "cpu": 7.0}

    def takes(s):
        passed["s"] += s
        passed["cpu"] += s / 4

    class Slow(Journal):
        def begin(self, call):
            takes(100)  # to wait for a commit is no part of it

    @pgqrs.step
    def busy():
        takes(2)

    @pgqrs.workflow
    def work():
        takes(50)
        busy()

    journal = Slow()
    context = context_of(work, journal, ())
    context.clocks = Clocks(lambda: passed["s"], lambda: passed["cpu"], lambda: 0.5)
    flow.execute(definition_of(work), context, b'{"input": null}')
    assert [(s.seconds, s.cpu_seconds) for s in journal.steps] == [(2.0, 0.5)]


def test_a_run_says_which_step_it_is_in():
    said = []

    @pgqrs.step
    def inside():
        said.append(pgqrs.current_run().step)

    @pgqrs.workflow
    def work():
        for _ in range(2):
            said.append(pgqrs.current_run().step)
            inside()
        said.append(pgqrs.current_run().step)

    run(work)
    assert said == [None, "inside", None, "inside#2", None]


def test_a_body_whose_begin_does_not_return_never_starts():
    class Stopped(Journal):
        def begin(self, call):
            raise Suspended

    @pgqrs.workflow
    def work():
        try:
            double(1)
        except Exception:
            bodies.append("caught")

    with pytest.raises(Suspended):
        run(work, journal=Stopped())
    assert bodies == []


def test_what_begin_is_told_of_a_step():
    @pgqrs.step(name="named", timeout="10m", pure=True, retry=2)
    def anything():
        return 1

    @pgqrs.workflow
    def work():
        anything()

    call = run(work)[1].call
    assert (call.name, call.position, call.timeout_s, call.pure, call.retry_count) == (
        "named",
        0,
        600.0,
        True,
        0,
    )
    assert call.retry_in_s > 0


# Replay


def test_a_replay_returns_what_was_recorded_and_runs_no_body():
    @pgqrs.workflow
    def work():
        return double(1) + double(2)

    result, journal = run(work, success("double", 0, b"10"), success("double#2", 1, b"20"))
    assert (result, bodies, journal.events) == (b"30", [], [])


def test_a_replay_goes_on_after_the_last_recorded_step():
    @pgqrs.workflow
    def work():
        return [double(1), double(2), other(3)]

    result, journal = run(work, success("double", 0, b"10"))
    assert (result, bodies) == (b"[10,4,3]", [2, 3])
    assert [(s.name, s.position) for s in journal.steps] == [("double#2", 1), ("other", 2)]


def test_a_result_is_the_decoded_record_the_first_time_as_on_every_replay():
    @dataclasses.dataclass
    class Point:
        x: int
        at: datetime

    @pgqrs.step
    def point() -> Point:
        return Point(1, datetime.fromisoformat("2024-01-02T03:04:05+00:00"))

    @pgqrs.step
    def pair():
        return (1, {"2": "b"})

    seen = []

    @pgqrs.workflow
    def work():
        seen.append((point(), pair()))

    _, journal = run(work)
    run(work, *journal.recorded())
    assert seen[0] == seen[1]
    assert seen[0][1] == [1, {"2": "b"}]


def test_a_null_that_was_recorded_is_a_result():
    @pgqrs.workflow
    def work():
        return other(None)

    assert run(work, success("other", 0, b"null"))[0] == b"null"
    assert bodies == []


@pytest.mark.parametrize(
    ("recorded", "names"),
    [
        ([success("other", 0)], ["'double'", "'other'"]),
        ([success("other", 0), success("double", 1)], ["'double'", "'other'"]),
    ],
)
def test_a_replay_that_takes_another_step_names_both(recorded, names):
    @pgqrs.workflow
    def work():
        double(1)

    with pytest.raises(Refused, match="same steps in the same order") as refused:
        run(work, *recorded)
    assert all(n in str(refused.value) for n in names)
    assert bodies == []


def test_a_step_put_in_the_middle_is_noticed():
    @pgqrs.workflow
    def work():
        double(1)
        other(2)
        double(3)

    with pytest.raises(Refused, match=r"step 2 of this run is now 'other', but 'double#2' was recorded"):
        run(work, success("double", 0), success("double#2", 1))


def test_a_recorded_step_that_is_never_called_is_noticed():
    @pgqrs.workflow
    def work():
        double(1)

    with pytest.raises(Refused, match=r"ended without calling step 'other'"):
        run(work, success("double", 0), success("other", 1))


# Failure and retry


def test_a_step_that_fails_raises_the_same_the_first_time_and_on_replay():
    caught = []

    @pgqrs.workflow
    def work():
        try:
            boom(7)
        except ValueError as e:
            caught.append(e)
        return "went on"

    result, journal = run(work)
    again, _ = run(work, *journal.recorded())
    assert result == again == b'"went on"'
    assert [(type(e), e.args) for e in caught] == [(ValueError, ("no", 7))] * 2
    assert bodies == [7]


def test_a_failure_that_nobody_catches_ends_the_run():
    @pgqrs.workflow
    def work():
        boom()

    with pytest.raises(Refused) as refused:
        run(work)
    assert b"ValueError" in refused.value.error


def test_an_exit_in_a_step_or_in_the_workflow_is_a_failure():
    @pgqrs.step
    def leaves():
        raise SystemExit(3)

    @pgqrs.workflow
    def in_step():
        leaves()

    @pgqrs.workflow
    def in_workflow():
        raise SystemExit(3)

    for work in (in_step, in_workflow):
        with pytest.raises(Refused):
            run(work)


def test_a_step_with_tries_left_leaves_its_worker_until_the_next():
    @pgqrs.step(retry=StepRetryPolicy(2, BackoffStrategy.exponential(10, 100)))
    def flaky():
        bodies.append("flaky")
        raise ValueError("no")

    @pgqrs.workflow
    def work():
        flaky()

    journal, delays = Journal(), []
    for _ in range(2):
        with pytest.raises(Suspended):
            run(work, *journal.recorded(), journal=journal)
        delays.append((journal.steps[-1].retry_count, journal.steps[-1].retry_in_s))
    with pytest.raises(Refused):
        run(work, *journal.recorded(), journal=journal)
    assert delays == [(1, 10.0), (2, 20.0)]
    assert (journal.steps[-1].retry_in_s, journal.steps[-1].retry_count, len(bodies)) == (None, 2, 3)


def test_a_step_that_succeeds_on_a_later_try_is_recorded_with_its_tries():
    @pgqrs.step(retry=5)
    def flaky():
        if len(bodies) < 2:
            bodies.append(1)
            raise ValueError
        return "done"

    @pgqrs.workflow
    def work():
        return flaky()

    journal = Journal()
    for _ in range(2):
        with pytest.raises(Suspended):
            run(work, *journal.recorded(), journal=journal)
    assert run(work, *journal.recorded(), journal=journal)[0] == b'"done"'
    assert (journal.steps[-1].retry_count, journal.steps[-1].status) == (2, WorkflowStatus.Success)


def test_a_step_without_a_policy_is_tried_once():
    @pgqrs.workflow
    def work():
        boom()

    journal = Journal()
    with pytest.raises(Refused):
        run(work, journal=journal)
    assert journal.steps[0].retry_in_s is None


def test_a_transient_error_is_retried_without_a_policy_and_when_it_says():
    @pgqrs.step
    def flaky():
        raise pgqrs.TransientStepError("busy", retry_after="2m")

    @pgqrs.workflow
    def work():
        flaky()

    journal = Journal()
    for _ in range(3):
        with pytest.raises(Suspended):
            run(work, *journal.recorded(), journal=journal)
    with pytest.raises(Refused):
        run(work, *journal.recorded(), journal=journal)
    assert [s.retry_in_s for s in journal.steps] == [120.0, 120.0, 120.0, None]


def test_a_transient_error_that_says_no_time_waits_as_long_as_its_policy_says():
    backoff = BackoffStrategy.exponential(2.0)

    @pgqrs.step(retry=StepRetryPolicy(3, backoff))
    def flaky():
        raise pgqrs.TransientStepError("busy")

    @pgqrs.workflow
    def work():
        flaky()

    journal = Journal()
    for _ in range(3):
        with pytest.raises(Suspended):
            run(work, *journal.recorded(), journal=journal)
    assert [s.retry_in_s for s in journal.steps] == [backoff.delay(n, lambda: 0.5) for n in (1, 2, 3)]
    assert len({s.retry_in_s for s in journal.steps}) == 3


def test_a_transient_error_that_says_nonsense_about_when_still_fails_the_step_and_is_recorded():
    @pgqrs.step
    def flaky():
        raise pgqrs.TransientStepError("busy", retry_after="soon")

    @pgqrs.workflow
    def work():
        flaky()

    journal = Journal()
    with pytest.raises((Suspended, Refused)):
        run(work, journal=journal)
    assert [e for e, _ in journal.events] == ["begin", "record"]


def test_a_suspended_run_cannot_be_caught_by_the_workflow():
    @pgqrs.step(retry=1)
    def flaky():
        raise ValueError

    @pgqrs.workflow
    def work():
        with contextlib.suppress(Exception):
            flaky()
        return "went on"

    with pytest.raises(Suspended):
        run(work)


# Values


@pytest.mark.parametrize(
    "value",
    [object(), float("nan"), "\0", [{1: object()}], bytes],
    ids=["object", "NaN", "NUL", "inside", "type"],
)
def test_a_result_that_json_cannot_carry_fails_its_step_for_good(value):
    @pgqrs.step(retry=3)
    def odd():
        return value

    @pgqrs.workflow
    def work():
        odd()

    journal = Journal()
    with pytest.raises(Refused, match="the result of step 'odd'"):
        run(work, journal=journal)
    assert [(s.status, s.retry_in_s) for s in journal.steps] == [(WorkflowStatus.Error, None)]


def test_a_result_that_contains_itself_fails_its_step():
    @pgqrs.step
    def cyclic():
        value = []
        value.append(value)
        return value

    @pgqrs.workflow
    def work():
        cyclic()

    journal = Journal()
    with pytest.raises(Refused):
        run(work, journal=journal)
    assert len(journal.steps) == 1


def test_a_result_over_the_limit_fails_its_step():
    @pgqrs.workflow
    def work():
        other("x" * 1000)

    with pytest.raises(Refused, match="over the limit of 100"):
        run(work, limit=100)


def test_a_workflows_result_that_json_cannot_carry_is_refused():
    @pgqrs.workflow
    def work():
        return object()

    with pytest.raises(Refused, match="the result of workflow 'work'"):
        run(work)


def test_arguments_that_do_not_fit_are_refused_before_the_body():
    @pgqrs.workflow
    def work(x: int):
        bodies.append(x)

    with pytest.raises(Refused):
        run(work, payload=b'{"input": "seven"}')
    assert bodies == []
    assert run(work, payload=b'{"input": 7}')[0] == b"null"
    assert bodies == [7]


def test_several_arguments_come_by_name():
    @pgqrs.workflow
    def work(a: int, b: str = "x", *, c: float = 0.5):
        return [a, b, c]

    assert run(work, payload=b'{"input": {"a": 1, "c": 2.5}}')[0] == b'[1,"x",2.5]'


def test_a_handlers_result_is_not_kept():
    @pgqrs.handler(queue="q")
    def handle(x: int):
        bodies.append(x)
        return object()

    assert run(handle, payload=b"7")[0] == b"null"
    assert bodies == [7]


# Where a step is just a call


def test_a_step_within_a_step_is_a_plain_call():
    @pgqrs.step
    def outer(x):
        return double(x) + 1

    @pgqrs.workflow
    def work():
        return outer(3)

    result, journal = run(work)
    assert (result, [s.name for s in journal.steps]) == (b"7", ["outer"])


def test_a_step_outside_a_run_or_in_a_handler_is_a_plain_call():
    @pgqrs.handler(queue="q")
    def handle(x: int):
        double(x)

    assert double(4) == 8
    _, journal = run(handle, payload=b"5")
    assert (journal.events, bodies) == ([], [4, 5])


def test_a_step_called_from_another_thread_is_an_error(monkeypatch):
    monkeypatch.setattr(flow, "_inside_worker", True)

    @pgqrs.workflow
    def work():
        caught = []

        def call():
            try:
                double(1)
            except errors.WrongThreadError as e:
                caught.append(str(e))

        thread = threading.Thread(target=call, name="mine")
        thread.start()
        thread.join()
        return caught

    result, journal = run(work)
    assert b"from thread 'mine'" in result
    assert (bodies, journal.events) == ([], [])


def test_a_thread_that_took_the_context_along_is_an_error_as_well():
    import contextvars

    @pgqrs.workflow
    def work():
        caught = []
        copied = contextvars.copy_context()

        def call():
            try:
                copied.run(double, 1)
            except errors.WrongThreadError as e:
                caught.append(str(e))

        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
        return caught

    assert b"was called from thread" in run(work)[0]
    assert bodies == []


# The run itself


def test_the_current_run_has_a_key_that_every_attempt_shares():
    keys = []

    @pgqrs.step
    def pay():
        keys.append(pgqrs.current_run().key)

    @pgqrs.workflow
    def work():
        keys.append((pgqrs.current_run().key, pgqrs.current_run().id, pgqrs.current_run().attempt))
        pay()
        pay()

    run(work)
    run(work, attempt=2)
    assert keys[1:3] == keys[4:6] == ["work/42/pay", "work/42/pay#2"]
    assert (keys[0], keys[3]) == (("work/42", 42, 1), ("work/42", 42, 2))


def test_there_is_no_current_run_outside_one():
    with pytest.raises(errors.ValidationError, match="outside a run"):
        pgqrs.current_run()

    @pgqrs.workflow
    def work():
        return None

    run(work)
    with pytest.raises(errors.ValidationError):
        pgqrs.current_run()


def test_a_pause_takes_the_run_off_once():
    @pgqrs.workflow
    def work():
        pgqrs.pause("lunch", resume_after="1h")
        return other(1)

    journal = Journal()
    with pytest.raises(Suspended):
        run(work, journal=journal)
    [step] = journal.steps
    assert (step.name, step.status, step.output, step.retry_in_s) == (
        "pause",
        WorkflowStatus.Paused,
        b'"lunch"',
        3600.0,
    )
    assert run(work, *journal.recorded())[0] == b"1"


def test_a_pause_is_for_the_workflow_itself():
    @pgqrs.step
    def pauses():
        pgqrs.pause()

    @pgqrs.workflow
    def work():
        pauses()

    with pytest.raises(Refused, match="for the workflow itself"):
        run(work)
    with pytest.raises(errors.ValidationError):
        pgqrs.pause()


def test_a_run_has_a_limit_of_steps(monkeypatch):
    monkeypatch.setattr(flow, "STEPS_MAX", 3)

    @pgqrs.workflow
    def work():
        for n in range(4):
            double(n)

    with pytest.raises(Refused, match="split it into several runs"):
        run(work)
    assert bodies == [0, 1, 2]


# async


@pgqrs.step
async def adouble(x):
    bodies.append(x)
    await asyncio.sleep(0)
    return x * 2


def test_an_async_run_replays_like_any_other():
    @pgqrs.workflow
    async def work():
        return [await adouble(1), await adouble(2)]

    result, journal = run_async(work)
    assert (result, journal.events[0], len(journal.steps)) == (b"[2,4]", ("begin", "adouble"), 2)
    bodies.clear()
    assert run_async(work, *journal.recorded())[0] == b"[2,4]"
    assert bodies == []


def test_steps_that_are_gathered_run_together_and_replay_by_name():
    @pgqrs.workflow
    async def work():
        return await asyncio.gather(adouble(1), adouble(2), adouble(3))

    inside, everybody = [], asyncio.Event()

    class Together(AsyncJournal):
        async def gate(self, call):
            inside.append(call.name)
            if len(inside) == 3:
                everybody.set()
            await everybody.wait()

    result, journal = run_async(work, journal=Together())
    assert result == b"[2,4,6]"
    bodies.clear()
    assert run_async(work, *reversed(journal.recorded()))[0] == b"[2,4,6]"
    assert bodies == []


def test_a_plain_step_in_an_async_run_is_recorded():
    @pgqrs.workflow
    async def work():
        return double(1) + await adouble(2)

    result, journal = run_async(work)
    assert (result, [s.name for s in journal.steps]) == (b"6", ["double", "adouble"])


def test_an_async_step_in_a_plain_run_says_what_to_do():
    @pgqrs.workflow
    def work():
        with contextlib.closing(adouble(1)) as coroutine:
            coroutine.send(None)

    with pytest.raises(Refused, match="make the workflow `async def`"):
        run(work)


def test_an_async_step_over_its_time_limit_has_failed():
    @pgqrs.step(timeout=0.01)
    async def slow():
        await asyncio.Event().wait()

    @pgqrs.workflow
    async def work():
        await slow()

    journal = AsyncJournal()
    with pytest.raises(Refused):
        run_async(work, journal=journal)
    assert journal.steps[0].status is WorkflowStatus.Error
    error = msgspec.json.decode(journal.steps[0].error)
    assert error["type"] == "builtins.TimeoutError"
    assert error["message"] == "step 'slow' was cancelled at its time limit of 0.01 s"


def test_an_async_step_with_tries_left_leaves_its_worker():
    @pgqrs.step(retry=1)
    async def flaky():
        raise ValueError

    @pgqrs.workflow
    async def work():
        await flaky()

    with pytest.raises(Suspended):
        run_async(work)


def test_an_async_run_that_a_cancelled_task_ends_is_refused():
    """Nothing else would ever tell the supervisor that it is over."""

    @pgqrs.workflow
    async def work():
        task = asyncio.create_task(asyncio.sleep(60))
        await asyncio.sleep(0)
        task.cancel()
        await task

    with pytest.raises(Refused) as refused:
        run_async(work)
    assert b"CancelledError" in refused.value.error


def test_a_task_groups_member_that_leaves_the_worker_takes_the_run_along():
    @pgqrs.step(retry=1)
    async def flaky():
        raise ValueError

    @pgqrs.workflow
    async def work():
        async with asyncio.TaskGroup() as group:
            group.create_task(flaky())
            group.create_task(adouble(1))

    with pytest.raises(Suspended):
        run_async(work)


def test_a_task_groups_member_that_fails_ends_the_run():
    @pgqrs.workflow
    async def work():
        async with asyncio.TaskGroup() as group:
            group.create_task(adouble(object()))

    with pytest.raises(Refused):
        run_async(work)


def test_a_decorated_function_is_still_a_plain_one():
    @pgqrs.workflow
    def work(x: int) -> int:
        return double(x)

    assert work(2) == 4
    assert work.__name__ == "work"


def test_outside_a_worker_a_step_is_a_plain_call_in_every_thread():
    @pgqrs.step
    def double(n):
        return 2 * n

    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(double, 21).result() == 42
