"""Runs are taken back from a worker without its help: whatever it does meanwhile, each run is with one of the two."""

import os
import selectors
import signal
import socket
import subprocess
import threading
import time

import pytest

import pgqrs
from supervisors import wire
from supervisors.births.launch import Child
from supervisors.core import events, scheduling
from supervisors.core.core import Core
from supervisors.core.state import OnCpu
from supervisors.loop.pipes import Pipes
from supervisors.worker import board as boards
from supervisors.worker.board import Board, BoardReader
from tests.core.test_core import Scene, checkpoint, message, started
from tests.test_worker import Pipe, told

pytestmark = pytest.mark.skipif(boards.new_board() is None, reason="no boards on this machine")

WAIT_S = 10.0


# The gate


def test_the_two_sides_never_both_have_a_run():
    """A process goes into one run after another as fast as it can; it is recalled at any moment."""
    fd = boards.new_board()
    reader = BoardReader(os.dup(fd))
    ours, theirs = socket.socketpair()
    ours.settimeout(WAIT_S)
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            writer, went_into = Board(fd), 0
            while True:
                if writer.enter(went_into + 1):
                    went_into += 1
                    continue
                theirs.sendall(went_into.to_bytes(8, "big"))
                if theirs.recv(1) != b"g":
                    os._exit(0)
                writer.recalls_heard += 1
        finally:
            os._exit(1)
    os.close(fd)
    theirs.close()
    seen: list[int] = []
    until = time.monotonic() + 4.0
    try:
        while time.monotonic() < until and len(seen) < 500:
            while reader.entered < (seen[-1] if seen else 0) + len(seen) % 7:
                os.sched_yield()  # on a busy machine the other process needs this one's time
            reader.recall()
            entered = reader.entered
            went_into = int.from_bytes(ours.recv(8, socket.MSG_WAITALL), "big")
            assert went_into <= entered, f"it is in {went_into}, which the supervisor took"
            assert reader.entered - went_into == 1
            seen.append(entered)
            ours.sendall(b"g")
        reader.recall()
        ours.recv(8, socket.MSG_WAITALL)
        ours.sendall(b"e")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    assert len(set(seen)) > 10, "the process went on between the recalls"
    reader.close()


def test_who_goes_in_before_the_recall_is_seen_inside():
    fd = boards.new_board()
    reader, writer = BoardReader(os.dup(fd)), Board(fd)
    assert writer.enter(7)
    reader.recall()
    assert reader.entered == 7
    assert not writer.enter(8)
    writer.recalls_heard += 1
    assert writer.enter(8)
    writer.leave()
    assert reader.entered == 0


def test_what_was_said_before_a_recall_is_heard_before_its_answer():
    """A part of it is on the board, a part in the pipe."""
    fd = boards.new_board()
    writer = Board(os.dup(fd))
    heard: list[events.Event] = []
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    out_read, out_write = os.pipe()
    pipes = Pipes(selectors.DefaultSelector(), heard.append, lambda *_: None)
    # What is distrusted is killed, so the worker is a process of its own.
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    pidfd = os.pidfd_open(process.pid)
    pipes.adopt(Child(1, process.pid, ours, out_read, pidfd, BoardReader(fd)))
    assert heard == [events.Launched(1, process.pid, gated=True)]
    for n in range(1, 21):
        pipes.send(1, wire.Execute(n, 1, "work", "workflow", b"null", 1, ()))
    in_the_pipe = [wire.Finished(n, 1, b"1" * 1000) for n in range(1, 10)]
    for frame in in_the_pipe:
        writer.put(wire.encode(frame))
    writer.send(theirs.sendall)
    on_the_board = [wire.Finished(n, 1, b"1") for n in range(10, 20)]
    for frame in on_the_board:
        writer.put(wire.encode(frame))
    assert writer.enter(20)
    pipes.recall(1)
    assert heard[1:] == [
        *(events.Received(1, f) for f in in_the_pipe + on_the_board),
        events.Recalled(1, 20),
    ]
    process.kill()
    process.wait()
    for fd in (out_read, out_write, pidfd):
        os.close(fd)


# The worker

inside, go_on = threading.Event(), threading.Event()
ran: list[int] = []


@pytest.fixture(autouse=True)
def nothing_ran():
    ran.clear()
    inside.clear()
    go_on.clear()


@pgqrs.step
def holds():
    inside.set()
    assert go_on.wait(WAIT_S)


@pgqrs.workflow
def held_up():
    holds()


@pgqrs.step
def counted():
    ran.append(pgqrs.current_run().id)


@pgqrs.workflow
def counts():
    counted()
    counted()


@pytest.fixture
def gated():
    fd = boards.new_board()
    reader = BoardReader(os.dup(fd))
    with Pipe(held_up, counts, board=fd) as pipe:
        yield pipe, reader
        go_on.set()


def test_what_is_recalled_behind_a_step_never_begins(gated):
    pipe, reader = gated
    pipe.execute(held_up, 1)
    assert inside.wait(WAIT_S)
    pipe.execute(counts, 2, 3)
    reader.recall()
    assert reader.entered == 1
    pipe.send(wire.Recall(((3, 1), (2, 1))))
    go_on.set()
    said = told(pipe.until_idle())
    assert ("Returned", None, None) in said
    assert ran == []


def test_what_is_recalled_while_it_waits_for_its_commit_does_not_go_on(gated):
    pipe, reader = gated
    pipe.execute(counts, 2)
    pipe.until_idle()
    pipe.execute(held_up, 1)
    assert inside.wait(WAIT_S)
    pipe.send(wire.Committed(((2, 1),)))
    reader.recall()
    pipe.send(wire.Recall(((2, 1),)))
    go_on.set()
    said = pipe.until_idle()
    assert wire.Returned((2,)) in said
    assert ran == [2], "its second step runs elsewhere"


def is_in_no_run(reader):
    """Soon: it says that it is idle before it leaves."""
    until = time.monotonic() + WAIT_S
    while reader.entered:
        assert time.monotonic() < until
        time.sleep(0.001)


def test_nothing_begins_while_the_gate_is_closed(gated):
    """What it is to do comes before the Recall: of that, it knows only what the board says."""
    pipe, reader = gated
    reader.recall()
    pipe.execute(counts, 2, 3)
    pipe.sock.settimeout(0.2)
    with pytest.raises(TimeoutError):
        pipe.next()
    pipe.sock.settimeout(WAIT_S)
    assert ran == []
    pipe.send(wire.Recall(((3, 1),)))
    pipe.until_idle()
    assert ran == [2]
    is_in_no_run(reader)


def test_a_run_may_come_again_after_its_recall(gated):
    pipe, reader = gated
    pipe.execute(held_up, 1)
    assert inside.wait(WAIT_S)
    pipe.execute(counts, 2)
    reader.recall()
    pipe.send(wire.Recall(((2, 1),)))
    pipe.execute(counts, 2)
    go_on.set()
    pipe.until_idle()
    assert ran == [2]


# The core


def pair(*numbers: int, lanes: int = 8, workers: int = 2, ready: int = 1) -> Scene:
    """These runs are at worker 1, whose runs can be recalled; `ready` workers are there."""
    scene = Scene(workers=workers, lanes=lanes).registered()
    scene.launches.clear()
    scene.tell(events.Launched(1, 1001, gated=True)).says(1, wire.Ready(1001))
    scene.takes(*(message(n) for n in numbers))
    for n in range(2, ready + 1):
        scene.tell(events.Launched(n, 1000 + n, gated=True)).says(n, wire.Ready(1000 + n))
    return scene


def second(scene: Scene) -> Scene:
    scene.tell(events.Launched(2, 1002, gated=True))
    return scene.says(2, wire.Ready(1002))


def recalled(scene: Scene, entered: int, worker: int = 1) -> Scene:
    assert events.Recall(worker) in scene.out, scene.out
    return scene.tell(events.Recalled(worker, entered))


def test_a_worker_with_nothing_to_do_gets_half_of_what_another_has_not_begun_at_once():
    scene = pair(1, 2, 3, 4, 5, 6, 7).says(1, started(1)).saves()
    recalled(second(scene), entered=1)
    assert scene.sent(wire.Recall, 1) == [wire.Recall(((7, 1), (6, 1), (5, 1)))]
    assert sorted(scene.at(2)) == [5, 6, 7]
    assert scene.at(1) == [1, 2, 3, 4]
    assert [f.message_id for f in scene.sent(wire.Execute, 2)] == [5, 6, 7], "in their order"
    assert scene.unsaved == []


def test_what_a_worker_is_about_to_begin_is_left_to_it():
    """Else one run would go to and fro between two workers."""
    scene = second(pair(1))
    assert scene.ordered(events.Recall) == []
    assert scene.after(1.0).ordered(events.Recall) == []


def test_the_run_that_the_worker_is_in_stays_there_and_is_not_asked_for_again_at_once():
    """Nobody has said that it began."""
    scene = pair(1, 2).says(1, started(1))
    recalled(second(scene), entered=2)
    assert scene.at(1) == [1, 2]
    assert scene.ordered(events.Recall) == []
    assert scene.tell(events.Tick()).ordered(events.Recall) == []
    assert len(scene.after(scheduling.REBALANCE_S * 1.1).ordered(events.Recall)) == 1


def test_behind_a_long_step_nothing_is_left_not_even_what_had_begun():
    scene = pair(1, 2, 3).says(1, started(1), checkpoint(1)).saves().says(1, started(2, "long")).saves()
    scene.after(1.0)
    recalled(second(scene), entered=2)
    assert scene.at(1) == [2]
    assert sorted(scene.at(2)) == [1, 3]
    [order] = [f for f in scene.all_sent(wire.Execute, 2) if f.message_id == 1]
    [history] = [f for f in scene.all_sent(wire.History, 2) if f.message_id == 1]
    assert [s.name for s in history.steps] == ["s0"], "it goes on from what is recorded"
    assert order.claim_no == 1


def test_what_waits_for_a_commit_goes_on_elsewhere_once_that_is_there():
    scene = pair(1, 2).says(1, started(1), checkpoint(1)).says(1, started(2, "long"))
    second(scene)
    scene.after(1.0)
    recalled(scene, entered=2)
    assert scene.at(2) == []
    scene.saves()
    assert scene.at(2) == [1]


def test_what_was_recalled_does_not_come_back_before_its_worker_has_dropped_it():
    scene = pair(1, 2, 3).says(1, started(1)).saves()
    recalled(second(scene), entered=1)
    [taken] = scene.at(2)
    scene.dies(2)
    scene.after(0.01)
    assert taken in scene.waiting()
    scene.says(1, wire.Returned((taken,)))
    assert taken in scene.at(1)


def test_a_worker_in_a_long_step_gets_nothing_more():
    scene = pair(1, lanes=4, workers=1).says(1, started(1, "long")).saves().after(1.0)
    scene.wants.clear()
    assert scene.after(1.0).wants == {}
    scene.says(1, checkpoint(1)).saves()
    assert scene.wants[1].limit == 3


def test_a_drain_gives_back_what_is_not_begun_without_the_workers_help():
    scene = pair(1, 2, 3, workers=1).says(1, started(1, "long")).saves()
    scene.stop(1)
    assert scene.sent(wire.Drain, 1) == [wire.Drain(False)]
    recalled(scene, entered=1)
    assert sorted(w.claim.message_id for w in scene.unsaved) == [2, 3]


def test_a_worker_is_emptied_at_once_for_a_run_that_must_be_alone():
    scene = pair(1, 2, workers=1).says(1, started(1, "long")).saves()
    scene.after(0.1).takes(message(3, crash_count=1))
    recalled(scene, entered=1)
    assert scene.at(1) == [1]


def test_a_recall_from_a_dead_worker_changes_nothing():
    core: Core = pair(1, 2).core
    core.workers[1].on_cpu = OnCpu(1, None, 0, 100.0, None, "time", 0, None)
    assert core.handle(events.Recalled(9, 1), 100.0) == []
    assert core.handle(events.Recalled(1, 1), 100.0) == []
