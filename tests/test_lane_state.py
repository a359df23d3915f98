"""Lanes of one worker share a thread, and do not see what their code ties to it."""

import asyncio
import contextlib
import io
import os
import subprocess
import sys
import threading
import time

import pytest

import pgqrs
from supervisors import wire
from supervisors.worker.board import BoardReader, new_board
from tests.test_worker import Pipe

local = threading.local()
local.at_import = "seen by all"


@pgqrs.step
def one() -> int:
    return 1


def results(pipe, count):
    """Commits whatever comes, until so many runs have ended: their ends, by run."""
    ends = {}
    while len(ends) < count:
        frame = pipe.next()
        if isinstance(frame, wire.Checkpoint):
            pipe.commit(frame)
        elif isinstance(frame, wire.Finished | wire.Failed):
            ends[frame.message_id] = frame
    return ends


def test_each_run_has_thread_locals_of_its_own_across_a_step():
    @pgqrs.workflow
    def flow() -> list[str | None]:
        first = getattr(local, "mine", None), getattr(threading.local, "x", None)
        local.mine = str(pgqrs.current_run().id)
        one()
        one()
        return [first[0], local.mine, getattr(local, "at_import", None)]

    main = getattr(local, "mine", None)
    with Pipe(flow) as pipe:
        pipe.execute(flow, 1, 2, 3, 4)
        ends = results(pipe, 4)
        pipe.execute(flow, 5)  # after the others
        ends |= results(pipe, 1)
    # The worker of this test runs in a thread of its own, which has seen no import.
    assert {n: e.output for n, e in ends.items()} == {n: b'[null,"%d",null]' % n for n in (1, 2, 3, 4, 5)}
    assert getattr(local, "mine", None) == main


def test_a_redirected_stream_is_that_of_its_run():
    @pgqrs.workflow
    def flow() -> str:
        heard = io.StringIO()
        with contextlib.redirect_stdout(heard):
            print(pgqrs.current_run().id, end="")
            one()
            print(pgqrs.current_run().id, end="")
            one()
        return heard.getvalue()

    before = sys.stdout
    with Pipe(flow) as pipe:
        pipe.execute(flow, 1, 2, 3)
        assert {n: e.output for n, e in results(pipe, 3).items()} == {
            n: b'"%d%d"' % (n, n) for n in (1, 2, 3)
        }
    assert sys.stdout is before


def test_an_event_loop_around_plain_steps_is_no_other_runs():
    @pgqrs.workflow
    def flow() -> int:
        async def main():
            await asyncio.sleep(0)
            first = one()
            await asyncio.sleep(0)
            return first + one()

        return asyncio.run(main())

    with Pipe(flow) as pipe:
        pipe.execute(flow, *range(1, 7))
        assert {n: e.output for n, e in results(pipe, 6).items()} == dict.fromkeys(range(1, 7), b"2")


def test_a_workflow_of_one_lane_can_hold_a_lock_across_a_step():
    lock = threading.Lock()

    @pgqrs.workflow(lanes=1)
    def flow() -> int:
        with lock:
            return one() + one()

    with Pipe(flow) as pipe:
        pipe.execute(flow, *range(1, 7))
        assert {n: e.output for n, e in results(pipe, 6).items()} == dict.fromkeys(range(1, 7), b"2")


def test_a_run_that_waits_on_the_cpu_hears_that_it_is_to_stop():
    @pgqrs.workflow(lanes=1)
    def flow() -> int:
        return one() + one()

    with Pipe(flow) as pipe:
        pipe.execute(flow, 1, 2)
        pipe.until(wire.Checkpoint)
        pipe.send(wire.Cancel(1, 1))
        assert pipe.until(wire.Returned)[-1] == wire.Returned((1,))
        checkpoint = pipe.until(wire.Checkpoint)[-1]
        pipe.commit(checkpoint)
        assert results(pipe, 1)[2].output == b"2"


def test_a_run_that_was_recalled_while_it_waited_on_the_cpu_does_not_go_on_with_the_commit_that_it_hears_first():
    ran = []

    @pgqrs.step
    def second() -> int:
        ran.append(2)
        return 2

    @pgqrs.workflow(lanes=1)
    def flow() -> int:
        return one() + second()

    fd = new_board()
    reader = BoardReader(os.dup(fd))
    with Pipe(flow, board=fd) as pipe:
        pipe.execute(flow, 1)
        checkpoint = pipe.until(wire.Checkpoint)[-1]
        pipe.until_idle()
        until = time.monotonic() + 10
        while reader.entered:  # it is in its code until it hears
            assert time.monotonic() < until
        reader.recall()
        pipe.commit(checkpoint)  # was on its way before
        pipe.until_idle()
        pipe.send(wire.Recall(((1, 1),)))
        assert pipe.until(wire.Returned)[-1] in (wire.Returned(()), wire.Returned((1,)))
        pipe.until_idle()
    assert ran == []


@pytest.mark.parametrize("lanes", [0, 2, "1", -1])
def test_a_workflow_has_one_lane_or_leaves_it_to_the_supervisor(lanes):
    with pytest.raises(pgqrs.ValidationError, match="lanes="):
        pgqrs.workflow(lanes=lanes)(lambda: 1)


def test_a_lane_starts_with_the_values_of_the_import():
    """In a process whose thread has seen the import, as a worker's has."""
    told = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=True
    )
    assert told.stdout.split() == ["first", "None", "mine", "first", "mine", "first"]


SCRIPT = """
import threading
local = threading.local()
local.value = "first"
other = threading.local()
from supervisors.worker.lane_state import LaneState, find_locals
import gc
find_locals()
gc.freeze()
state = LaneState()
print(local.value)
local.value = other.value = "mine"
own = state.take()
print(getattr(other, "value", None))
state.put(own)
print(local.value)
state.reset()
print(local.value)
state.put(own)
print(other.value)
state.reset()
local.value = "mine again"
state.reset()
print(local.value)
"""
