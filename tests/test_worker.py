"""A worker at one end of a pipe: what it says, in what order, and what it runs meanwhile. The test is the supervisor."""

import asyncio
import os
import socket
import threading
import time

import msgspec
import pytest

import pgqrs
from pgqrs.flows import flow
from pgqrs.flows.definitions import definition_of
from pgqrs.model.states import WorkflowStatus
from pgqrs.model.writes import Place, RecordedStep, Step
from supervisors import wire
from supervisors.worker.board import BoardReader, new_board
from supervisors.worker.worker import LOOK_EVERY_S, make_worker

WAIT_S = 10.0


class Pipe:
    """The supervisor's end. The worker runs in a thread, which is its steps' own."""

    def __init__(self, *functions, kind="sync", payload_bytes_max=1024 * 1024, board=None):
        self.sock, self._theirs = socket.socketpair()
        self.sock.settimeout(WAIT_S)
        self._parser = wire.Parser("supervisor")
        self._frames = []
        self._functions = {definition_of(f).name: definition_of(f) for f in functions}
        self._kind, self._limit, self._board = kind, payload_bytes_max, board
        self._error = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        try:
            make_worker(self._kind, self._theirs, self._functions, self._limit, self._board).run(4711)
        except BaseException as e:
            self._error = e
        finally:
            self._theirs.close()

    def __enter__(self):
        self._thread.start()
        assert self.next() == wire.Ready(4711)
        assert self.next() == wire.Idle()
        return self

    def __exit__(self, kind, *_):
        self.sock.shutdown(socket.SHUT_WR)
        while self.sock.recv(65536):
            pass  # to the end of what it still says
        self._thread.join(WAIT_S)
        self.sock.close()
        if kind is None:
            assert not self._thread.is_alive(), "the worker does not end with its pipe"
            if self._error is not None:
                raise self._error

    def send(self, *frames):
        self.sock.sendall(b"".join(map(wire.encode, frames)))

    def execute(self, function, *numbers, claim_no=1, payload=b'{"input": null}', attempt=1):
        d = definition_of(function)
        self.send(*(wire.Execute(n, claim_no, d.name, d.kind, payload, attempt, ()) for n in numbers))

    def next(self):
        while not self._frames:
            data = self.sock.recv(65536)
            assert data, f"the worker has ended: {self._error!r}"
            self._frames += self._parser.feed(data)
        return self._frames.pop(0)

    def until(self, kind):
        """Up to and with the first of this kind."""
        frames = [self.next()]
        while not isinstance(frames[-1], kind):
            frames.append(self.next())
        return frames

    def until_idle(self):
        """All it says until it has nothing left to run."""
        return self.until(wire.Idle)[:-1]

    def commit(self, *checkpoints):
        self.send(wire.Committed(tuple((c.message_id, c.claim_no) for c in checkpoints)))

    def commit_all(self):
        """Commits whatever comes, until a run has ended. Everything that was said."""
        said = []
        while not said or not isinstance(said[-1], wire.Finished | wire.Failed | wire.Returned):
            said.append(self.next())
            if isinstance(said[-1], wire.Checkpoint):
                self.commit(said[-1])
        return said


def told(frames):
    """In short: (kind, run, step)."""

    def step_of(frame):
        step = getattr(frame, "step", None)
        return getattr(step, "name", step)

    return [
        (type(f).__name__, getattr(f, "message_id", None), step_of(f))
        for f in frames
        if not isinstance(f, wire.Idle | wire.Left)
    ]


ran = []


@pytest.fixture(autouse=True)
def nothing_ran():
    ran.clear()


def note(*what):
    ran.append((pgqrs.current_run().id, *what))


@pgqrs.step
def first():
    note("first")
    return 1


@pgqrs.step
def second():
    note("second")
    return 2


@pgqrs.step(pure=True)
def pure():
    note("pure")
    return 3


@pgqrs.workflow
def two():
    return first() + second()


@pgqrs.workflow
def none():
    note("none")
    return "done"


# Order


def test_a_run_without_steps_starts_and_finishes():
    with Pipe(none) as pipe:
        pipe.execute(none, 1)
        assert pipe.until_idle() == [wire.Started(1, 1), wire.Finished(1, 1, b'"done"')]


def test_the_next_step_waits_for_the_commit_of_the_one_before():
    with Pipe(two) as pipe:
        pipe.execute(two, 1)
        said = pipe.until_idle()
        assert told(said) == [("Started", 1, None), ("Started", 1, "first"), ("Checkpoint", 1, "first")]
        assert ran == [(1, "first")]
        pipe.commit(said[-1])
        said = pipe.until_idle()
        assert told(said) == [("Started", 1, "second"), ("Checkpoint", 1, "second"), ("Finished", 1, None)]
        assert (said[-1].output, said[-2].step.position) == (b"3", 1)


def test_a_commit_of_another_claim_does_not_count():
    with Pipe(two) as pipe:
        pipe.execute(two, 1)
        checkpoint = pipe.until_idle()[-1]
        pipe.send(wire.Committed(((1, 9), (7, 1))), wire.Revoke(0))
        pipe.until(wire.Returned)
        pipe.until_idle()
        assert ran == [(1, "first")]
        pipe.commit(checkpoint)
        assert pipe.until_idle()


def test_a_pure_step_does_not_wait_and_a_strict_one_waits_for_all_before_it():
    @pgqrs.workflow
    def mixed():
        first()
        pure()
        pure()
        second()

    with Pipe(mixed) as pipe:
        pipe.execute(mixed, 1)
        said = pipe.until_idle()
        checkpoints = [f for f in said if isinstance(f, wire.Checkpoint)]
        assert [c.step.name for c in checkpoints] == ["first", "pure", "pure#2"]
        pipe.commit(*checkpoints[:2])
        assert pipe.until_idle() == []
        pipe.commit(checkpoints[2])
        assert told(pipe.until_idle())[:1] == [("Started", 1, "second")]


def test_while_one_run_waits_another_runs():
    with Pipe(two) as pipe:
        pipe.execute(two, 1, 2, 3)
        said = pipe.until_idle()
        assert ran == [(1, "first"), (2, "first"), (3, "first")]
        for checkpoint in reversed([f for f in said if isinstance(f, wire.Checkpoint)]):
            pipe.commit(checkpoint)
            pipe.until(wire.Finished)
        assert ran[3:] == [(3, "second"), (2, "second"), (1, "second")]


def test_a_checkpoint_leaves_when_its_step_ends_and_not_when_the_worker_next_reads():
    go_on = threading.Event()

    @pgqrs.workflow
    def waits():
        first()
        assert go_on.wait(WAIT_S)

    with Pipe(waits) as pipe:
        pipe.execute(waits, 1)
        assert told(pipe.until(wire.Checkpoint))[-1] == ("Checkpoint", 1, "first")
        go_on.set()
        assert pipe.until_idle()[-1] == wire.Finished(1, 1, b"null")


def test_what_is_on_the_cpu_is_said_before_it_runs():
    go_on = threading.Event()

    @pgqrs.step(timeout="10s", retry=2)
    def waits():
        assert go_on.wait(WAIT_S)

    @pgqrs.workflow
    def flow():
        waits()

    with Pipe(flow) as pipe:
        pipe.execute(flow, 1)
        started = [pipe.next(), pipe.next()][-1]
        assert (started.step, started.timeout_s, started.retry_count) == ("waits", 10.0, 0)
        assert started.retry_in_s > 0
        go_on.set()
        pipe.until_idle()


def test_contexts_of_lanes_do_not_mix():
    import contextvars

    own = contextvars.ContextVar("own", default=None)

    @pgqrs.workflow
    def flow():
        before = own.get()
        own.set(pgqrs.current_run().id)
        first()
        second()
        return [before, own.get(), pgqrs.current_run().id]

    with Pipe(flow) as pipe:
        pipe.execute(flow, 1, 2)
        for f in pipe.until_idle():
            if isinstance(f, wire.Checkpoint):
                pipe.commit(f)
        ends = []
        while len(ends) < 2:
            ends += [f for f in [pipe.next()] if isinstance(f, wire.Finished)]
    assert [e.output for e in ends] == [b"[null,1,1]", b"[null,2,2]"]


# Recorded steps


def test_recorded_steps_are_not_run_again():
    with Pipe(two) as pipe:
        pipe.send(wire.History(1, (RecordedStep("first", 0, "SUCCESS", b"10", None, 0),)))
        pipe.execute(two, 1)
        said = pipe.commit_all()
    assert (said[-1].output, ran) == (b"12", [(1, "second")])


def test_a_history_in_parts_is_one_history_and_belongs_to_its_run():
    with Pipe(two) as pipe:
        pipe.send(
            wire.History(1, (RecordedStep("first", 0, "SUCCESS", b"10", None, 0),)),
            wire.History(1, (RecordedStep("second", 1, "SUCCESS", b"20", None, 0),)),
        )
        pipe.execute(two, 1)
        assert pipe.commit_all()[-1].output == b"30"
        pipe.execute(two, 1, claim_no=2)
        assert pipe.commit_all()[-1].output == b"3"


# Leaving


def test_a_run_that_fails_says_so():
    @pgqrs.workflow
    def fails():
        raise ValueError("no")

    with Pipe(fails) as pipe:
        pipe.execute(fails, 1)
        end = pipe.until_idle()[-1]
    assert isinstance(end, wire.Failed)
    assert b"ValueError" in end.error


def test_a_step_with_tries_left_leaves_the_worker():
    @pgqrs.step(retry=1)
    def flaky():
        raise ValueError

    @pgqrs.workflow
    def flow():
        flaky()

    with Pipe(flow) as pipe:
        pipe.execute(flow, 1)
        said = pipe.until_idle()
        assert told(said)[-1] == ("StepFailed", 1, "flaky")
        assert said.pop() == wire.Left(1)
        assert (said[-1].step.retry_count, said[-1].step.retry_in_s > 0) == (1, True)


def test_a_pause_leaves_the_worker():
    @pgqrs.workflow
    def flow():
        pgqrs.pause("lunch", "1m")
        note("after")

    with Pipe(flow) as pipe:
        pipe.execute(flow, 1)
        paused = Step(
            0, "pause", WorkflowStatus.Paused, b'"lunch"', retry_in_s=60.0, place=Place("", 0), ended=1
        )
        assert pipe.until_idle()[-2:] == [wire.Paused(1, 1, paused), wire.Left(1)]
    assert ran == []


def test_a_run_that_left_runs_no_further_step_on_its_way_out():
    """Its claim is being released: whatever a `finally` does now could happen beside the run's next attempt."""

    @pgqrs.step(retry=1)
    def flaky():
        raise ValueError

    @pgqrs.workflow
    def flow():
        try:
            flaky()
        finally:
            second()

    with Pipe(flow, none) as pipe:
        pipe.execute(flow, 1)
        said = pipe.until_idle()
        assert (told(said)[-1], ran) == (("StepFailed", 1, "flaky"), [])
        pipe.execute(none, 2)
        assert told(pipe.until_idle())[-1] == ("Finished", 2, None)


def test_a_result_over_the_limit_fails_its_run_alone():
    @pgqrs.workflow
    def big():
        return "x" * 1000

    with Pipe(big, none, payload_bytes_max=100) as pipe:
        pipe.execute(big, 1)
        assert isinstance(pipe.until_idle()[-1], wire.Failed)
        pipe.execute(none, 2)
        assert isinstance(pipe.until_idle()[-1], wire.Finished)


def test_a_handler_gets_its_payload_and_records_nothing():
    @pgqrs.handler(queue="q")
    def handle(x: int):
        note(x, pgqrs.current_run().attempt)
        first()

    with Pipe(handle) as pipe:
        pipe.execute(handle, 1, payload=b"7", attempt=3)
        started, finished = pipe.until_idle()
        assert (started, finished.output) == (wire.Started(1, 1), b"null")
        assert 0 < finished.seconds < 1
    assert ran == [(1, 7, 3), (1, "first")]


def test_a_handler_that_fails_says_so():
    @pgqrs.handler(queue="q")
    def handle(x: int):
        raise ValueError(x)

    with Pipe(handle) as pipe:
        pipe.execute(handle, 1, payload=b"7")
        said = pipe.until_idle()
        pipe.execute(handle, 2, payload=b'"seven"')
        said += pipe.until_idle()
    assert [type(f).__name__ for f in said] == ["Started", "Failed", "Started", "Failed"]


# Being told


@pytest.fixture
def held_up():
    """A workflow whose run holds the worker until `go_on` is set."""
    entered, go_on = threading.Event(), threading.Event()

    @pgqrs.workflow
    def holds():
        entered.set()
        assert go_on.wait(WAIT_S)
        time.sleep(2 * LOOK_EVERY_S)  # the next look is due
        first()

    holds.entered, holds.go_on = entered, go_on
    return holds


def test_a_revoke_gives_back_what_has_not_started_the_last_first(held_up):
    with Pipe(held_up, none) as pipe:
        pipe.execute(held_up, 1)
        pipe.execute(none, 2, 3, 4)
        held_up.entered.wait(WAIT_S)
        pipe.send(wire.Revoke(2))
        held_up.go_on.set()
        assert pipe.until(wire.Returned)[-1] == wire.Returned((3, 4))
        pipe.until(wire.Finished)
        assert [r[0] for r in ran] == [1, 2] or [r[0] for r in ran] == [1]
        pipe.until_idle()
    assert [r[0] for r in ran] == [1, 2]


def test_a_revoke_with_nothing_to_give_is_answered(held_up):
    with Pipe(none) as pipe:
        for count in (0, 3):
            pipe.send(wire.Revoke(count))
            assert pipe.until(wire.Returned) == [wire.Returned(())]
            pipe.until_idle()


def test_what_was_given_back_may_come_again_with_a_new_history(held_up):
    with Pipe(held_up, two) as pipe:
        pipe.execute(held_up, 1)
        pipe.send(wire.History(2, (RecordedStep("first", 0, "SUCCESS", b"10", None, 0),)))
        pipe.execute(two, 2)
        held_up.entered.wait(WAIT_S)
        pipe.send(wire.Revoke(1))
        held_up.go_on.set()
        pipe.until(wire.Returned)
        pipe.until_idle()
        pipe.execute(two, 2, claim_no=2)
        pipe.commit_all()
    assert ran == [(1, "first"), (2, "first"), (2, "second")]


def test_a_cancel_stops_a_run_where_it_waits():
    with Pipe(two) as pipe:
        pipe.execute(two, 1)
        pipe.until_idle()
        pipe.send(wire.Cancel(1, 1))
        assert pipe.until_idle() == [wire.Returned((1,))]
    assert ran == [(1, "first")]


def test_a_cancel_stops_a_running_run_at_its_next_step(held_up):
    with Pipe(held_up) as pipe:
        pipe.execute(held_up, 1)
        held_up.entered.wait(WAIT_S)
        pipe.send(wire.Cancel(1, 1))
        held_up.go_on.set()
        end = pipe.until_idle()[-1]
    # The worker reads between lanes: a run that is on the CPU may take one more step.
    assert isinstance(end, wire.Returned | wire.Finished)


def test_a_cancel_gives_back_what_has_not_started(held_up):
    with Pipe(held_up, none) as pipe:
        pipe.execute(held_up, 1)
        pipe.execute(none, 2, 3)
        held_up.entered.wait(WAIT_S)
        pipe.send(wire.Cancel(2, 1))
        held_up.go_on.set()
        assert pipe.until(wire.Returned)[-1] == wire.Returned((2,))
        pipe.until(wire.Finished)
        pipe.until_idle()
    assert [r[0] for r in ran] == [1, 3]


@pgqrs.step
def raises_suspended():
    raise flow.Suspended


@pgqrs.workflow
def leaves_by_itself():
    raises_suspended()


@pgqrs.workflow
def leaves_by_itself_in_its_own_code():
    raise flow.Suspended


@pgqrs.handler(queue="q")
def a_handler_that_leaves(x: int | None):
    raise flow.Suspended


@pgqrs.workflow
async def leaves_by_itself_on_a_loop():
    raises_suspended()


@pgqrs.workflow
async def leaves_by_itself_in_its_own_code_on_a_loop():
    raise flow.Suspended


@pytest.mark.parametrize(
    "function",
    [
        leaves_by_itself,
        leaves_by_itself_in_its_own_code,
        a_handler_that_leaves,
        leaves_by_itself_on_a_loop,
        leaves_by_itself_in_its_own_code_on_a_loop,
    ],
)
def test_a_run_whose_own_code_takes_it_off_its_worker_fails(function):
    d = definition_of(function)
    with Pipe(function, kind="async" if d.is_async else "sync") as pipe:
        pipe.execute(function, 1, payload=b"null" if d.kind == "handler" else b'{"input": null}')
        failed = pipe.until(wire.Failed)[-1]
        assert (failed.message_id, b"for pgqrs to raise" in failed.error) == (1, True)


def test_a_cancel_of_an_earlier_claim_leaves_the_new_one_alone(held_up):
    with Pipe(held_up, none) as pipe:
        pipe.execute(held_up, 1)
        pipe.execute(none, 2, claim_no=2)
        held_up.entered.wait(WAIT_S)
        pipe.send(wire.Cancel(2, 1))
        held_up.go_on.set()
        pipe.until(wire.Finished)
        pipe.until_idle()
    assert [r[0] for r in ran] == [1, 2]


def test_a_run_that_was_lost_and_comes_again_replaces_the_one_that_still_waits():
    """Cancelled under its old claim and ordered anew in one breath: the new one must hear its commits."""
    with Pipe(two) as pipe:
        pipe.execute(two, 1)
        pipe.until_idle()
        pipe.send(wire.Cancel(1, 1))
        pipe.execute(two, 1, claim_no=2)
        checkpoint = pipe.until(wire.Checkpoint)[-1]
        assert checkpoint.claim_no == 2
        pipe.commit(checkpoint)
        assert told(pipe.until(wire.Finished))[-1] == ("Finished", 1, None)


def test_a_drain_returns_what_has_not_started_and_finishes_the_rest():
    with Pipe(two) as pipe:
        pipe.execute(two, 1)
        checkpoint = pipe.until_idle()[-1]
        pipe.send(wire.Drain(False))
        assert pipe.until(wire.Returned)[-1] == wire.Returned(())
        pipe.until_idle()
        pipe.execute(two, 2)
        assert pipe.until(wire.Returned)[-1] == wire.Returned((2,))
        pipe.until_idle()
        pipe.commit(checkpoint)
        assert isinstance(pipe.until_idle()[-1], wire.Finished)
    assert ran == [(1, "first"), (1, "second")]


def test_a_drain_at_the_boundary_returns_every_run_where_it_waits():
    with Pipe(two) as pipe:
        pipe.execute(two, 1, 2)
        pipe.until_idle()
        pipe.send(wire.Drain(True))
        said = pipe.until_idle()
        assert sorted(n for f in said for n in f.message_ids) == [1, 2]
    assert len(ran) == 2


def test_the_worker_ends_with_its_pipe_while_runs_wait():
    with Pipe(two) as pipe:
        pipe.execute(two, 1, 2, 3)
        pipe.until_idle()


# async def


@pgqrs.step
async def afirst():
    note("afirst")
    await asyncio.sleep(0)
    return 1


@pgqrs.step
async def asecond():
    note("asecond")
    return 2


@pgqrs.workflow
async def atwo():
    return await afirst() + await asecond()


def test_async_runs_wait_for_their_commits_and_not_for_each_other():
    with Pipe(atwo, kind="async") as pipe:
        pipe.execute(atwo, 1, 2)
        checkpoints = [pipe.until(wire.Checkpoint)[-1], pipe.until(wire.Checkpoint)[-1]]
        assert sorted(ran) == [(1, "afirst"), (2, "afirst")]
        pipe.commit(checkpoints[1])
        end = pipe.until(wire.Finished)[-1]
        assert (end.message_id, end.output) == (checkpoints[1].message_id, b"3")
        pipe.commit(checkpoints[0])
        assert pipe.until(wire.Finished)[-1].message_id == checkpoints[0].message_id


def test_gathered_steps_run_at_the_same_time():
    inside, everybody = [], asyncio.Event()

    @pgqrs.step
    async def together(n):
        inside.append(n)
        if len(inside) == 3:
            everybody.set()
        await everybody.wait()
        return n

    @pgqrs.workflow
    async def flow():
        return await asyncio.gather(*(together(n) for n in range(3)))

    with Pipe(flow, kind="async") as pipe:
        pipe.execute(flow, 1)
        assert pipe.commit_all()[-1].output == b"[0,1,2]"


def test_a_plain_step_in_an_async_run_waits_as_well():
    @pgqrs.workflow
    async def flow():
        return [first(), second(), await afirst()]

    with Pipe(flow, kind="async") as pipe:
        pipe.execute(flow, 1)
        checkpoint = pipe.until(wire.Checkpoint)[-1]
        pipe.until_idle()
        assert ran == [(1, "first")]
        pipe.commit(checkpoint)
        assert pipe.commit_all()[-1].output == b"[1,2,1]"


def test_an_async_run_that_has_left_may_end_as_it_likes():
    """It said that it leaves, to try a step again. What its code makes of that is no end of the run."""

    @pgqrs.step(retry=1)
    async def flaky():
        raise ValueError

    @pgqrs.workflow
    async def flow():
        try:
            await flaky()
        finally:
            raise KeyboardInterrupt  # instead of what takes the run off its worker

    with Pipe(flow, atwo, kind="async") as pipe:
        pipe.execute(flow, 1)
        pipe.until(wire.StepFailed)
        said = pipe.until(wire.Left)
        assert not [f for f in said if isinstance(f, wire.Failed | wire.Finished | wire.Returned)]
        pipe.execute(atwo, 2)
        assert pipe.commit_all()[-1].output == b"3", "its worker goes on"


def test_a_cancelled_async_run_stops_at_its_next_step():
    with Pipe(atwo, kind="async") as pipe:
        pipe.execute(atwo, 1)
        pipe.until(wire.Checkpoint)
        pipe.send(wire.Cancel(1, 1))
        assert pipe.until(wire.Returned)[-1] == wire.Returned((1,))
    assert ran == [(1, "afirst")]


def test_a_cancelled_async_run_in_a_task_group_stops_as_well():
    @pgqrs.workflow
    async def grouped():
        await afirst()
        async with asyncio.TaskGroup() as group:
            group.create_task(asecond())

    with Pipe(grouped, kind="async") as pipe:
        pipe.execute(grouped, 1)
        pipe.until(wire.Checkpoint)
        pipe.send(wire.Cancel(1, 1))
        assert pipe.until(wire.Returned)[-1] == wire.Returned((1,))


def test_a_drain_at_the_boundary_returns_async_runs():
    with Pipe(atwo, kind="async") as pipe:
        pipe.execute(atwo, 1, 2)
        pipe.until(wire.Checkpoint)
        pipe.until(wire.Checkpoint)
        pipe.send(wire.Drain(True))
        returned = pipe.until(wire.Returned)[-1].message_ids
        while len(returned) < 2:
            returned += pipe.until(wire.Returned)[-1].message_ids
        assert sorted(returned) == [1, 2]


def test_an_async_run_that_ends_by_a_cancelled_task_says_so():
    @pgqrs.workflow
    async def flow():
        task = asyncio.create_task(asyncio.sleep(60))
        await asyncio.sleep(0)
        task.cancel()
        await task

    with Pipe(flow, kind="async") as pipe:
        pipe.execute(flow, 1)
        assert b"CancelledError" in pipe.until(wire.Failed)[-1].error


class Unusual(BaseException):
    pass


@pytest.mark.parametrize("how", ["raises", "cancels itself", "cancels itself in a step"])
def test_an_async_run_ends_however_it_ends(how):
    """What asyncio would keep to itself: a run that says nothing is waited for without end."""

    async def end():
        if how == "raises":
            raise Unusual
        asyncio.current_task().cancel()
        await asyncio.sleep(0)

    @pgqrs.step
    async def ends():
        await end()

    @pgqrs.workflow
    async def flow():
        await (ends() if how.endswith("step") else end())

    with Pipe(flow, atwo, kind="async") as pipe:
        pipe.execute(flow, 1)
        error = pipe.until(wire.Failed)[-1].error
        assert (b"Unusual" if how == "raises" else b"CancelledError") in error
        pipe.execute(atwo, 2)
        assert pipe.commit_all()[-1].output == b"3", "and its worker goes on"


def test_an_async_run_that_is_cancelled_now_ends_where_it_waits():
    inside = threading.Event()

    @pgqrs.workflow
    async def flow():
        inside.set()
        await asyncio.Event().wait()

    with Pipe(flow, kind="async") as pipe:
        pipe.execute(flow, 1)
        assert inside.wait(WAIT_S)
        pipe.send(wire.Cancel(1, 1, now=True))
        assert pipe.until(wire.Returned)[-1] == wire.Returned((1,))


def test_an_async_run_that_is_cancelled_before_it_began_says_so():
    @pgqrs.workflow
    async def flow():
        note("flow")

    with Pipe(flow, kind="async") as pipe:
        d = definition_of(flow)
        execute = wire.Execute(1, 1, d.name, d.kind, b'{"input": null}', 1, ())
        pipe.send(execute, wire.Cancel(1, 1, now=True))  # read at once, as after code that held the loop
        assert pipe.until(wire.Returned)[-1] == wire.Returned((1,))
    assert ran == []


def test_a_loop_that_somebody_ends_ends_no_run_with_it():
    async def exits():
        await asyncio.sleep(0)
        raise SystemExit(3)

    @pgqrs.workflow
    async def exiting():
        await asyncio.gather(exits())

    @pgqrs.workflow
    async def waiting():
        await asyncio.Event().wait()

    board = new_board()
    reader, said, sent = (
        BoardReader(os.dup(board)),
        [],
        len(wire.encode(wire.Ready(4711)) + wire.encode(wire.Idle())),
    )

    def run():
        nonlocal sent
        with Pipe(waiting, exiting, kind="async", board=board) as pipe:
            pipe.execute(waiting, 1, 2)
            pipe.execute(exiting, 3)
            while data := pipe.sock.recv(65536):
                sent += len(data)
                said.extend(pipe._parser.feed(data))

    with pytest.raises(SystemExit):
        run()
    said += wire.Parser("supervisor").feed(reader.unsent(sent))
    assert {f.message_id for f in said if isinstance(f, wire.Started)} == {1, 2, 3}
    assert [f for f in said if isinstance(f, wire.Failed | wire.Finished)] == []


def test_an_async_run_that_left_leaves_no_step_running_behind():
    """Its claim is being released: a gathered task that goes on would run beside the run's next attempt."""
    ended = threading.Event()

    @pgqrs.step(retry=1)
    async def flaky():
        await asyncio.sleep(0)
        raise ValueError

    async def sleeps():
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    @pgqrs.workflow
    async def flow():
        await asyncio.gather(sleeps(), flaky())

    with Pipe(flow, kind="async") as pipe:
        pipe.execute(flow, 1)
        pipe.until(wire.StepFailed)
        assert ended.wait(2), "the other step of the run was left behind, waiting"


def test_an_async_run_that_was_lost_and_comes_again_hears_its_commits():
    with Pipe(atwo, kind="async") as pipe:
        pipe.execute(atwo, 1)
        pipe.until(wire.Checkpoint)
        pipe.until_idle()
        pipe.send(wire.Cancel(1, 1))
        pipe.execute(atwo, 1, claim_no=2)
        checkpoint = pipe.until(wire.Checkpoint)[-1]
        assert checkpoint.claim_no == 2
        pipe.until_idle()
        pipe.commit(checkpoint)
        assert pipe.until(wire.Finished)[-1].claim_no == 2


def test_an_async_run_leaves_whatever_its_own_code_waits_for():
    """The branch that meets the stop may be one for which nobody waits."""

    @pgqrs.workflow
    async def flow():
        async def branch():
            await afirst()
            await asecond()

        task = asyncio.create_task(branch())
        await asyncio.Event().wait()
        await task

    with Pipe(flow, kind="async") as pipe:
        pipe.execute(flow, 1)
        pipe.until(wire.Checkpoint)
        pipe.send(wire.Cancel(1, 1))
        assert pipe.until(wire.Returned)[-1] == wire.Returned((1,))


def test_the_way_out_of_an_async_run_is_not_cut_short_by_a_second_branch_that_leaves():
    ended = threading.Event()

    @pgqrs.workflow
    async def flow():
        leaves = asyncio.Event()

        async def at_once():
            await afirst()
            await asecond()

        async def later():
            await leaves.wait()
            await asecond()

        branches = [asyncio.create_task(at_once()), asyncio.create_task(later())]
        try:
            await asyncio.Event().wait()
        finally:
            leaves.set()
            await asyncio.sleep(0.02)
            ended.set()
            del branches

    with Pipe(flow, kind="async") as pipe:
        pipe.execute(flow, 1)
        pipe.until(wire.Checkpoint)
        pipe.send(wire.Cancel(1, 1))
        assert pipe.until(wire.Returned)[-1] == wire.Returned((1,))
        assert ended.is_set()


def test_a_run_that_is_cancelled_where_it_is_waits_for_no_step_beside_it():
    @pgqrs.step
    async def endless():
        note("endless")
        await asyncio.Event().wait()

    @pgqrs.workflow
    async def flow():
        branch = asyncio.create_task(endless())
        try:
            await asyncio.Event().wait()
        finally:
            await asecond()
            await branch

    with Pipe(flow, kind="async") as pipe:
        pipe.execute(flow, 1)
        while pipe.until(wire.Started)[-1].step != "endless":
            pass
        pipe.send(wire.Cancel(1, 1, now=True))
        assert pipe.until(wire.Returned)[-1] == wire.Returned((1,))
    assert ran == [(1, "endless")]


def test_an_async_run_ends_at_its_own_time_limit():
    @pgqrs.workflow(timeout="50ms")
    async def endless():
        await asyncio.Event().wait()

    d = definition_of(endless)
    with Pipe(endless, atwo, kind="async") as pipe:
        pipe.send(wire.Execute(1, 1, d.name, d.kind, b'{"input": null}', 1, (), 0.05))
        failed = pipe.until(wire.Failed)[-1]
        told = msgspec.json.decode(failed.error)
        assert (failed.message_id, told["code"]) == (1, "TIMEOUT")
        assert told["message"] == "the run was over its time limit of 0.05 s"
        pipe.execute(atwo, 2)
        assert pipe.commit_all()[-1].output == b"3", "its worker goes on"


def test_a_failed_attempt_is_told_while_its_run_goes_on_beside_it():
    done = asyncio.Event()

    @pgqrs.step(retry=pgqrs.StepRetryPolicy(3, pgqrs.BackoffStrategy.fixed(0.01)))
    async def flaky():
        note("flaky")
        if len(ran) == 1:
            raise ConnectionError
        done.set()

    @pgqrs.step
    async def beside():
        await done.wait()

    @pgqrs.workflow
    async def flow():
        await asyncio.gather(flaky(), beside())

    with Pipe(flow, kind="async") as pipe:
        pipe.execute(flow, 1)
        steps = [f.step for f in pipe.commit_all() if isinstance(f, wire.Checkpoint)]
    assert [(s.name, s.retry_count, s.retry_in_s) for s in steps] == [
        ("flaky", 1, 0.01),
        ("flaky", 1, None),
        ("beside", 0, None),
    ]


def test_an_async_worker_whose_runs_all_wait_has_none_of_them_on_its_cpu():
    board = new_board()
    reader = BoardReader(os.dup(board))

    @pgqrs.workflow
    async def waits():
        await asyncio.Event().wait()

    with Pipe(waits, kind="async", board=board) as pipe:
        pipe.execute(waits, 1)
        assert pipe.until(wire.Started)[-1] == wire.Started(1, 1)
        until = time.monotonic() + WAIT_S
        while reader.on_cpu().message_id:
            assert time.monotonic() < until, "the board still names a run"
            time.sleep(0.001)
        assert reader.last_on_cpu().message_id == 1


def test_an_async_handler_gets_its_payload():
    @pgqrs.handler(queue="q")
    async def handle(x: int):
        await asyncio.sleep(0)
        note(x)

    with Pipe(handle, kind="async") as pipe:
        pipe.execute(handle, 1, payload=b"7")
        assert pipe.until(wire.Finished)[-1] == wire.Finished(1, 1, b"null")
    assert ran == [(1, 7)]


# The lease


@pgqrs.workflow
def two_notes():
    note_one()
    note_two()


@pgqrs.step
def note_one():
    ran.append("one")


@pgqrs.step
def note_two():
    ran.append("two")


@pgqrs.workflow
async def two_notes_async():
    await note_async("one")
    await note_async("two")


@pgqrs.step
async def note_async(what):
    ran.append(what)


@pgqrs.handler(queue="q")
async def note_message(x: int | None):
    ran.extend(["one", "two"])


@pytest.mark.parametrize(
    ("code", "kind"), [(two_notes, "sync"), (two_notes_async, "async"), (note_message, "async")]
)
def test_nothing_starts_after_the_lease_until_it_is_renewed(code, kind):
    with Pipe(code, kind=kind) as pipe:
        pipe.send(wire.Lease(time.monotonic() - 1))
        pipe.execute(code, 1, payload=b"null" if code is note_message else b'{"input": null}')
        pipe.sock.settimeout(0.2)
        with pytest.raises(TimeoutError):
            pipe.next()
        assert ran == []
        pipe.sock.settimeout(WAIT_S)
        pipe.send(wire.Lease(time.monotonic() + 60))
        assert isinstance(pipe.commit_all()[-1], wire.Finished)
        assert ran == ["one", "two"]


@pytest.mark.parametrize(("flow", "kind"), [(two_notes, "sync"), (two_notes_async, "async")])
def test_a_run_under_way_starts_no_further_step_after_it(flow, kind):
    with Pipe(flow, kind=kind) as pipe:
        pipe.send(wire.Lease(time.monotonic() + 60))
        pipe.execute(flow, 1)
        first = pipe.until(wire.Checkpoint)[-1]
        pipe.send(wire.Lease(time.monotonic() - 1))
        pipe.commit(first)
        threading.Event().wait(0.2)
        assert ran == ["one"]
        pipe.send(wire.Lease(time.monotonic() + 60))
        assert isinstance(pipe.commit_all()[-1], wire.Finished)
        assert ran == ["one", "two"]


lease_is_over = threading.Event()


@pgqrs.workflow
def outlasts_the_lease():
    assert lease_is_over.wait(WAIT_S)
    note_one()


@pytest.mark.slow
def test_a_run_that_waits_for_the_lease_alone_goes_on_with_it():
    """It has recorded nothing, so that it waits for no commit."""
    lease_is_over.clear()
    with Pipe(outlasts_the_lease) as pipe:
        until = time.monotonic() + 1.0
        pipe.send(wire.Lease(until))
        pipe.execute(outlasts_the_lease, 1)
        pipe.until(wire.Started)
        while time.monotonic() < until:
            threading.Event().wait(0.01)
        lease_is_over.set()
        pipe.sock.settimeout(0.2)
        with pytest.raises(TimeoutError):
            pipe.next()
        assert ran == []
        pipe.sock.settimeout(WAIT_S)
        pipe.send(wire.Lease(time.monotonic() + 60))
        assert isinstance(pipe.until(wire.Finished)[-1], wire.Finished)
        assert ran == ["one"]


def test_a_run_that_waits_for_the_lease_can_be_called_back():
    with Pipe(two_notes) as pipe:
        pipe.send(wire.Lease(time.monotonic() + 60))
        pipe.execute(two_notes, 1)
        first = pipe.until(wire.Checkpoint)[-1]
        pipe.send(wire.Lease(time.monotonic() - 1), wire.Cancel(1, 1))
        pipe.commit(first)
        pipe.send(wire.Lease(time.monotonic() + 60))
        assert pipe.until(wire.Returned)[-1] == wire.Returned((1,))
        assert ran == ["one"]
