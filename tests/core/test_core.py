"""The supervisor's decisions, as given – when – then: events go in, commands come out, nothing else happens."""

from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgqrs.model.states import WorkflowStatus
from pgqrs.model.writes import (
    Archive,
    Begin,
    Claim,
    Claimed,
    Outcome,
    RecordedStep,
    Release,
    Settle,
    Step,
    Write,
)
from supervisors import wire
from supervisors.core import core as cores
from supervisors.core import events, limits, scheduling, staffing, stopping
from supervisors.core.core import Core
from supervisors.core.state import RECORDED_BYTES_MAX, Function, Settings
from supervisors.core.states import WorkerState

FLOW = Function("flow", "workflow", False, "flow", 1, 11)
PLAIN = Function("plain", "handler", False, "plain", 2, None)
ASYNC = Function("aflow", "workflow", True, "aflow", 3, 13)
SUCCESS, ERROR, RUNNING = WorkflowStatus.Success, WorkflowStatus.Error, WorkflowStatus.Running
CANCELLING, CANCELLED, PAUSED = WorkflowStatus.Cancelling, WorkflowStatus.Cancelled, WorkflowStatus.Paused


class Scene:
    """A core, the clock, and what it has ordered so far."""

    def __init__(self, *functions: Function, workers: int = 1, lanes: int | None = 2, **more: Any) -> None:
        self.core = Core(functions or (FLOW,), Settings(workers=workers, lanes=lanes, **more))
        self.now = 100.0
        self.out: list[Any] = []  # of the last event
        self.everything: list[Any] = []
        self.unsaved: list[Write] = []
        self.wants: dict[int, events.Want] = {}
        self.launches: list[events.Launch] = []

    # What happens

    def tell(self, event: events.Event) -> "Scene":
        self.out = self.core.handle(event, self.now)
        for command in self.out:
            self.everything.append(command)
            match command:
                case events.Save():
                    self.unsaved.append(command.write)
                case events.Want():
                    assert command.queue_id not in self.wants, (
                        "a second claim on a queue while one is under way"
                    )
                    self.wants[command.queue_id] = command
                case events.Launch():
                    self.launches.append(command)
        return self

    def registered(self, locked: bool = False) -> "Scene":
        return self.tell(events.Registered({q: 100 + q for q in self.core.queues}, locked=locked))

    def boot(self) -> "Scene":
        """Every worker that was ordered is ready."""
        while self.launches:
            n = self.launches.pop(0).worker
            self.tell(events.Launched(n, 1000 + n))
            self.says(n, wire.Ready(1000 + n))
        return self

    def up(self, locked: bool = False) -> "Scene":
        return self.tell(events.Tick()).boot().registered(locked)

    def says(self, worker: int, *frames: wire.Up) -> "Scene":
        out = []
        for frame in frames:
            out += self.tell(events.Received(worker, frame)).out
        self.out = out
        return self

    def takes(self, *messages: Claimed, queue: int = 1) -> "Scene":
        want = self.wants.pop(queue)
        assert len(messages) <= want.limit, f"{len(messages)} messages for a claim of {want.limit}"
        after = ("vt", messages[-1].claim.message_id) if messages else want.after
        return self.tell(events.Taken(want, list(messages), after))

    def saves(self, status: WorkflowStatus | None = RUNNING) -> "Scene":
        """The database applies what it was given; a run that is settled is what it was settled to."""
        outcomes = [Outcome(w, True, w.settle.status if w.settle else status) for w in self.take_unsaved()]
        return self.tell(events.Saved(outcomes))

    def loses(self) -> "Scene":
        return self.tell(events.Saved([Outcome(w, False) for w in self.take_unsaved()]))

    def refuses(self, text: str = "no such value") -> "Scene":
        return self.tell(events.Saved([Outcome(w, False, failure=text) for w in self.take_unsaved()]))

    def dies(
        self, worker: int, signal: str | None = "SIGSEGV", code: int | None = None, **more: Any
    ) -> "Scene":
        return self.tell(events.Exited(worker, signal, code, **more))

    def after(self, seconds: float) -> "Scene":
        self.now += seconds
        return self.tell(events.Tick())

    def stop(self, level: int) -> "Scene":
        return self.tell(events.Stop(level))

    def take_unsaved(self) -> list[Write]:
        unsaved, self.unsaved = self.unsaved, []
        return unsaved

    # What came of it

    def sent(self, kind: type, worker: int | None = None) -> list[Any]:
        """Frames of the last event."""
        return frames(self.out, kind, worker)

    def all_sent(self, kind: type, worker: int | None = None) -> list[Any]:
        return frames(self.everything, kind, worker)

    def ordered(self, kind: type) -> list[Any]:
        return [c for c in self.out if isinstance(c, kind)]

    def ever(self, kind: type) -> list[Any]:
        return [c for c in self.everything if isinstance(c, kind)]

    def at(self, worker: int) -> list[int]:
        return list(self.core.workers[worker].runs)

    def waiting(self) -> list[int]:
        return [r.id for r in self.core.waiting]


def frames(commands: list[Any], kind: type, worker: int | None) -> list[Any]:
    return [
        c.frame
        for c in commands
        if isinstance(c, events.Send) and isinstance(c.frame, kind) and worker in (None, c.worker)
    ]


def message(n: int, claim_no: int = 1, queue: int = 1, **more: Any) -> Claimed:
    return Claimed(
        Claim(n, 100 + queue, claim_no), more.pop("payload", b'{"input": 1}'), more.pop("read_ct", 1), **more
    )


def started(
    n: int, step: str | None = None, position: int = 0, claim_no: int = 1, **more: Any
) -> wire.Started:
    return wire.Started(n, claim_no, step, position, **more)


def checkpoint(n: int, position: int = 0, claim_no: int = 1, seconds: float = 0.01) -> wire.Checkpoint:
    return wire.Checkpoint(n, claim_no, Step(position, f"s{position}", SUCCESS, b"1", seconds=seconds))


def left(
    n: int = 1, position: int = 0, claim_no: int = 1, retry_in_s: float = 30.0, retry_count: int = 1
) -> wire.StepFailed:
    failed = Step(position, "a", ERROR, error=b'"no"', retry_count=retry_count, retry_in_s=retry_in_s)
    return wire.StepFailed(n, claim_no, failed)


def paused(
    n: int = 1, position: int = 0, claim_no: int = 1, resume_after_s: float | None = None
) -> wire.Paused:
    return wire.Paused(n, claim_no, Step(position, "pause", PAUSED, b'"lunch"', retry_in_s=resume_after_s))


def finished(n: int, claim_no: int = 1) -> wire.Finished:
    return wire.Finished(n, claim_no, b"7")


def failed(n: int, claim_no: int = 1) -> wire.Failed:
    return wire.Failed(n, claim_no, b'{"type": "builtins.ValueError", "message": "no"}')


def running(*numbers: int, workers: int = 1, lanes: int = 2, function: Function = FLOW, **more: Any) -> Scene:
    """These messages were taken and are with the workers; none is started."""
    scene = Scene(function, workers=workers, lanes=lanes, **more).up()
    return scene.takes(*(message(n, queue=function.queue_id) for n in numbers), queue=function.queue_id)


def in_step(
    n: int = 1,
    name: str = "a",
    function: Function = FLOW,
    claimed: dict[str, Any] | None = None,
    **timing: Any,
) -> Scene:
    """Message `n` is in this step on worker 1, and has been begun."""
    scene = Scene(function, lanes=2).up()
    scene.takes(message(n, queue=function.queue_id, **(claimed or {})), queue=function.queue_id)
    return scene.says(1, started(n)).saves().says(1, started(n, name, **timing))


# Beginning


def test_it_launches_its_workers_and_claims_when_one_is_ready():
    scene = Scene(workers=3).registered()
    assert [(c.worker, c.kind) for c in scene.launches] == [(1, "sync"), (2, "sync"), (3, "sync")]
    assert scene.wants == {}
    scene.tell(events.Launched(1, 1001)).says(1, wire.Ready(1001))
    assert [w.limit for w in scene.wants.values()] == [2]


def test_async_functions_get_one_worker_of_their_own():
    scene = Scene(FLOW, ASYNC, workers=2).registered()
    assert [c.kind for c in scene.launches] == ["sync", "sync", "async"]
    assert [c.kind for c in Scene(ASYNC, workers=2).registered().launches] == ["async"]


def test_nothing_is_claimed_before_it_is_registered():
    scene = Scene()
    scene.tell(events.Tick()).boot()
    assert scene.wants == {}
    assert scene.registered().wants


def test_it_claims_no_more_than_its_workers_have_room_for():
    scene = Scene(workers=2, lanes=2).up()
    assert scene.wants[1].limit == 4
    scene.takes(message(1), message(2), message(3))
    assert scene.after(1).ordered(events.Want)[0].limit == 1
    scene.takes(message(4)).after(1)
    assert scene.wants == {}
    assert scene.says(1, started(1), finished(1)).ordered(events.Want)[0].limit == 1


def test_with_room_for_one_it_wakes_to_claim_one():
    scene = Scene(workers=1, lanes=1).up().takes()
    assert scene.wants == {}
    scene.now = scene.core.next_timer()
    assert scene.tell(events.Tick()).wants[1].limit == 1


def test_two_queues_share_the_room():
    scene = Scene(FLOW, PLAIN, workers=2, lanes=4).up()
    assert sum(w.limit for w in scene.wants.values()) <= 8


OTHER = Function("other", "workflow", False, "other", 4, 14)


def filled(*functions: Function, **more: Any) -> Scene:
    """Workers have all that they can have at hand of the first queue, and the others had nothing when they were asked. The steps of
    all are measured."""
    scene = Scene(*functions, **more)
    for queue in scene.core.queues.values():
        queue.measured = True
    scene.up()
    given = 0
    while scene.wants:
        queue, want = next(iter(scene.wants.items()))
        numbers = range(given + 1, given + 1 + want.limit) if queue == 1 else ()
        given += len(numbers)
        scene.takes(*(message(n) for n in numbers), queue=queue)
    return scene


def test_short_steps_do_not_keep_long_ones_out():
    """The short ones, which are many, fill what a worker has at hand again and again."""
    scene = filled(FLOW, OTHER, workers=2, lanes=None).after(1.0)
    scene.core.queues[4].step_s = 1.0
    assert [len(scene.at(w)) for w in (1, 2)] == [10, 10]
    assert scene.wants == {}
    for w in (1, 2):
        for n in scene.at(w)[:3]:
            scene.says(w, finished(n))
    assert scene.wants[4].limit == 2, "one for each worker"
    scene.takes(message(901, queue=4), message(902, queue=4), queue=4)
    assert [sum(n > 900 for n in scene.at(w)) for w in (1, 2)] == [1, 1]
    for w in (1, 2):
        for n in scene.at(w)[:3]:
            scene.says(w, finished(n))
    assert 4 not in scene.wants, "no second one beside it"


def test_what_was_promised_of_lanes_holds_for_every_queue():
    scene = filled(FLOW, OTHER, lanes=2).after(1.0)
    assert len(scene.at(1)) == 2
    assert scene.wants == {}


def test_a_worker_with_long_work_at_hand_is_given_nothing_beside():
    scene = filled(FLOW, OTHER, lanes=None)
    scene.core.queues[1].step_s = scene.core.queues[4].step_s = 600.0
    scene.says(1, *map(finished, scene.at(1)[2:])).after(1.0)
    assert len(scene.at(1)) == 2
    assert scene.wants == {}


def test_until_a_first_step_has_ended_a_worker_has_one_run():
    """It may be a long one, and what stands behind that in its worker could not be had back."""
    scene = Scene(workers=2, lanes=None).up()
    assert scene.wants[1].limit == 2
    scene.takes(message(1), message(2)).after(1.0)
    assert [len(scene.at(w)) for w in (1, 2)] == [1, 1]
    assert scene.wants == {}
    [first] = scene.at(1)
    scene.says(1, started(first, "a"), checkpoint(first, 0, seconds=0.02)).saves()
    assert scene.wants[1].limit == 18, "by its measured time"


def test_a_first_step_that_is_tiny_says_little_of_the_others():
    scene = Scene(workers=2, lanes=None).up().takes(message(1), message(2))
    [first] = scene.at(1)
    scene.says(1, started(first, "a"), checkpoint(first, 0, seconds=0.00001)).saves()
    assert scene.wants[1].limit == 18


@pytest.mark.parametrize(
    "end",
    [
        lambda: wire.Finished(1, 1, b"1"),
        lambda: wire.Failed(1, 1, b"1"),
        lambda: paused(resume_after_s=60.0),
    ],
    ids=["a workflow without steps", "an error", "a pause"],
)
def test_a_run_that_ends_without_a_step_opens_the_lanes_too(end):
    scene = Scene(lanes=None).up().takes(message(1)).says(1, end()).saves()
    assert scene.wants[1].limit == 10


def test_a_long_run_without_a_step_is_as_long_as_one():
    scene = Scene(lanes=None).up().takes(message(1)).says(1, started(1)).saves().after(5.0)
    assert scene.says(1, wire.Finished(1, 1, b"1")).saves().wants[1].limit == 1


def test_behind_a_long_step_stands_nothing():
    scene = Scene(lanes=None)
    scene.core.queues[1].measured, scene.core.queues[1].step_s = True, scheduling.LONG_STEP_S
    assert scene.up().wants[1].limit == 1
    scene.core.queues[1].step_s = scheduling.LONG_STEP_S / 2
    assert scene.takes().after(1.0).wants[1].limit == 2


def test_runs_go_to_a_worker_that_is_not_in_a_long_step():
    """They could not be called back from there before it ends."""
    scene = Scene(workers=2, lanes=10).up().takes(message(1))
    [busy] = [w for w in (1, 2) if scene.at(w)]
    scene.says(busy, started(1, "a")).saves().after(1.0)
    scene.takes(*(message(n) for n in range(2, 12)))
    assert scene.at(busy) == [1]


def test_a_queue_that_is_hinted_while_another_is_claimed_from_takes_no_more_than_is_left():
    scene = Scene(FLOW, PLAIN, lanes=8).up()
    scene.takes(queue=2)  # nothing there: it will be asked again later
    scene.tell(events.Hinted(("plain",)))
    assert sum(w.limit for w in scene.wants.values()) <= 8


def test_a_claim_is_never_larger_than_its_limit():
    assert Scene(workers=4, lanes=200).up().wants[1].limit <= scheduling.CLAIM_MAX


def test_runs_go_to_the_emptiest_worker():
    scene = running(1, 2, 3, 4, workers=2)
    assert (sorted(scene.at(1) + scene.at(2)), len(scene.at(1)), len(scene.at(2))) == ([1, 2, 3, 4], 2, 2)


def test_tiny_runs_go_to_one_worker_in_rows():
    """Who is waked has a millisecond of work."""
    scene = Scene(workers=4, lanes=100).up()
    scene.core.queues[1].step_s = scheduling.ROW_S / 25
    scene.takes(*(message(n) for n in range(1, 81)))
    assert [len(scene.at(n)) for n in (1, 2, 3, 4)] == [25, 25, 25, 5]


def test_a_row_ends_where_its_worker_is_full():
    scene = Scene(workers=2, lanes=10).up()
    scene.core.queues[1].step_s = scheduling.ROW_S / 100
    scene.takes(*(message(n) for n in range(1, 16)))
    assert [len(scene.at(n)) for n in (1, 2)] == [10, 5]


def test_a_worker_gets_what_the_run_has_recorded_ahead_of_it():
    step = RecordedStep("a", 0, "SUCCESS", b"1", None, 0)
    scene = Scene().up().takes(message(1, status=RUNNING, attempt=2, steps=(step,)), message(2, read_ct=3))
    kinds = [type(c.frame).__name__ for c in scene.ordered(events.Send)]
    assert kinds == ["History", "Execute", "Execute"]
    assert scene.sent(wire.History)[0].steps == (step,)
    assert [e.attempt for e in scene.sent(wire.Execute)] == [3, 1]


def test_what_is_sent_with_runs_counts_and_not_their_payloads_alone():
    """A worker reads between its steps: until then all of that lies in its pipe."""
    step = RecordedStep("a", 0, "SUCCESS", b"1" * (scheduling.LANES_BYTES_MAX // 3), None, 0)
    scene = Scene(lanes=10).up()
    scene.takes(*(message(n, status=RUNNING, attempt=1, steps=(step,)) for n in range(1, 7)))
    assert scene.at(1) == [1, 2, 3]
    scene.says(1, started(1)).saves().says(1, finished(1))
    assert scene.at(1) == [2, 3, 4]


def test_a_history_too_long_for_a_frame_goes_in_several():
    big = tuple(RecordedStep(f"s{n}", n, "SUCCESS", b"x" * 1_000_000, None, 0) for n in range(9))
    chunks = Scene().up().takes(message(1, steps=big)).sent(wire.History)
    assert len(chunks) > 1
    assert sum((c.steps for c in chunks), ()) == big


def test_a_worker_carries_a_limited_number_of_bytes():
    scene = Scene(workers=2, lanes=100).up()
    big = b"x" * (5 * 1024 * 1024)
    scene.takes(*(message(n, payload=big) for n in range(1, 8)))
    assert [len(scene.at(w)) for w in (1, 2)] == [2, 2]
    assert len(scene.waiting()) == 3


# A run's way


def test_a_run_is_begun_when_its_code_starts_and_once():
    scene = running(1)
    assert scene.unsaved == []
    scene.says(1, started(1), started(1, "a"))
    assert [w.begin for w in scene.unsaved] == [Begin(11, 1)]


def test_a_plain_message_has_no_run_and_its_handler_is_noted_once():
    scene = running(1, function=PLAIN).says(1, started(1), started(1))
    assert scene.unsaved == [Write(scene.core.runs[1].claim, delivers=True)]


def test_a_handler_that_has_ended_is_not_noted_as_begun():
    [ended] = running(1, function=PLAIN).says(1, finished(1)).unsaved
    assert (ended.delivers, ended.message) == (False, Archive())


def test_a_checkpoint_is_committed_before_the_worker_hears_so():
    scene = in_step().says(1, checkpoint(1))
    assert scene.sent(wire.Committed) == []
    assert scene.saves().sent(wire.Committed, 1) == [wire.Committed(((1, 1),))]


def test_the_checkpoint_of_a_worker_that_has_nothing_else_is_urgent():
    assert [c.urgent for c in in_step().says(1, checkpoint(1)).ordered(events.Save)] == [True]
    scene = running(1, 2).says(1, started(1), checkpoint(1))
    assert [c.urgent for c in scene.ordered(events.Save)] == [False, False]
    assert scene.says(1, wire.Idle()).ordered(events.Hurry)


def test_a_run_that_ends_leaves_when_its_end_is_committed():
    scene = in_step().says(1, checkpoint(1), finished(1))
    end = scene.unsaved[-1]
    assert (end.settle, end.message) == (Settle(SUCCESS, b"7"), Archive())
    assert list(scene.core.runs) == [1]
    assert list(scene.saves().core.runs) == []


def test_a_run_that_fails_is_an_error_and_dead():
    [write] = in_step().says(1, failed(1)).unsaved
    assert write.settle.status == ERROR
    assert write.message == Archive("ValueError: no")


def test_a_step_to_be_tried_again_leaves_its_worker_until_then():
    scene = in_step().says(1, left(retry_count=2))
    [write] = scene.unsaved
    assert (write.message, write.step.retry_count, write.step.retry_in_s) == (Release(30.0), 2, 30.0)
    assert scene.at(1) == []
    assert events.Note("step 'a' failed, again in 30 s: no", "warning", 1) in scene.out


@pytest.mark.parametrize(("resume", "delay"), [(60.0, 60.0), (None, cores.FOREVER_S)])
def test_a_paused_run_leaves_its_worker(resume, delay):
    [write] = in_step().says(1, paused(position=1, resume_after_s=resume)).unsaved
    assert (write.settle, write.message) == (Settle(PAUSED, error=b'"lunch"'), Release(delay))
    assert (write.step.name, write.step.status) == ("pause", SUCCESS)


def test_a_plain_message_that_fails_is_delivered_again_after_a_back_off():
    scene = in_step(function=PLAIN, claimed={"read_ct": 2}).says(1, failed(1))
    assert [w.message for w in scene.unsaved] == [Release(2.0, refund=False)]


def test_a_plain_message_that_failed_its_last_delivery_is_dead():
    scene = in_step(function=PLAIN, claimed={"read_ct": 5}).says(1, failed(1))
    assert [w.message for w in scene.unsaved] == [Archive("ValueError: no")]


def test_a_run_that_ended_but_kept_its_message_is_archived_unexecuted():
    scene = Scene().up().takes(message(1, status=SUCCESS), message(2, status=CANCELLING))
    assert scene.all_sent(wire.Execute) == []
    assert [(w.settle, w.message) for w in scene.unsaved] == [
        (None, Archive()), (Settle(CANCELLED), Archive()),
    ]  # fmt: skip


def test_what_a_worker_says_of_another_claim_is_of_the_past():
    scene = running(1)
    for frame in (started(1, claim_no=9), checkpoint(1, claim_no=9), finished(1, claim_no=9), failed(77)):
        scene.says(1, frame)
    assert scene.unsaved == []
    assert scene.at(1) == [1]


# Cancelling


def test_a_run_that_is_to_be_cancelled_is_stopped_instead_of_going_on():
    scene = in_step().says(1, checkpoint(1)).saves(CANCELLING)
    assert scene.sent(wire.Cancel, 1) == [wire.Cancel(1, 1)]
    assert scene.sent(wire.Committed) == []
    scene.says(1, wire.Returned((1,)))
    assert [(w.settle, w.message) for w in scene.unsaved] == [(Settle(CANCELLED), Archive())]


def test_a_cancel_is_sent_once():
    scene = in_step().says(1, checkpoint(1)).saves(CANCELLING)
    scene.says(1, checkpoint(1, 1)).saves(CANCELLING)
    assert len(scene.all_sent(wire.Cancel)) == 1


def test_a_run_that_is_being_cancelled_when_its_worker_dies_is_cancelled():
    scene = running(1, 2).says(1, started(1)).saves(CANCELLING).says(1, started(2, "b"))
    scene.take_unsaved()
    scene.dies(1)
    assert [w.settle for w in scene.unsaved if w.claim.message_id == 1] == [Settle(CANCELLED)]


# Deaths


def test_only_the_run_on_the_cpu_is_charged():
    scene = running(1, 2, 3, lanes=3).says(1, started(1), checkpoint(1), started(2, "b")).saves()
    scene.dies(1)
    by_run = {w.claim.message_id: w for w in scene.unsaved}
    assert by_run[2].crash.step == "b"
    assert by_run[2].crash.signal == "SIGSEGV"
    assert by_run[2].message is None
    assert set(by_run) == {2}


def test_what_a_dead_worker_had_begun_goes_on_in_another_from_what_it_has_recorded():
    before = RecordedStep("s0", 0, "ERROR", None, b"null", 1)
    scene = Scene(lanes=2).up().takes(message(1, steps=(before,), attempt=1), message(2))
    scene.says(1, started(1), checkpoint(1), started(2, "b")).saves().dies(1).boot()
    recorded = RecordedStep("s0", 0, "SUCCESS", b"1", None, 0)
    assert scene.all_sent(wire.History, 2) == [wire.History(1, (recorded,))]
    [again] = scene.all_sent(wire.Execute, 2)
    assert (again.message_id, again.claim_no, again.attempt) == (1, 1, 2)
    scene.take_unsaved()
    scene.says(2, started(1), started(1, "c", 1), checkpoint(1, 1), finished(1))
    assert [(w.begin, bool(w.step), w.message) for w in scene.unsaved] == [
        (None, True, None),
        (None, False, Archive()),
    ]


def test_a_run_goes_on_only_when_what_it_said_before_is_committed():
    scene = running(1, 2).says(1, started(1), checkpoint(1), started(2, "b"))
    assert scene.dies(1).ordered(events.Hurry)
    scene.boot()
    assert scene.all_sent(wire.Execute, 2) == []
    assert [e.message_id for e in scene.saves().sent(wire.Execute, 2)] == [2], "alone"
    assert scene.says(2, started(2, "b"), checkpoint(2)).at(2) == [2, 1]


@pytest.mark.parametrize("answer", ["cancelling", "lost", "refused", "stopping"])
def test_a_run_between_two_workers_hears_what_becomes_of_it(answer):
    scene = running(1, 2).says(1, started(1), checkpoint(1), started(2, "b")).dies(1)
    match answer:
        case "cancelling":
            ends = scene.saves(CANCELLING).unsaved
            assert [(e.settle, e.message) for e in ends] == [(Settle(CANCELLED), Archive())] * 2
        case "lost":
            assert scene.loses().core.runs == {}
        case "refused":
            ends = {w.claim.message_id: w for w in scene.refuses().unsaved}
            assert ends[1].settle.status == ERROR
        case "stopping":
            ends = scene.stop(1).saves().unsaved
            assert [(e.claim.message_id, e.message) for e in ends] == [(1, Release()), (2, Release())]
    assert scene.waiting() == []
    assert scene.all_sent(wire.Execute, 2) == []


LONG = wire.Checkpoint(1, 1, Step(0, "s0", SUCCESS, b"x" * RECORDED_BYTES_MAX, seconds=0.01))


def test_a_run_that_recorded_too_much_to_keep_is_claimed_anew():
    scene = running(1, 2, lanes=2)
    scene.says(1, started(1), LONG, started(2, "b")).saves().dies(1)
    by_run = {w.claim.message_id: w for w in scene.unsaved}
    assert (by_run[1].crash, by_run[1].message) == (None, Release())


def test_what_was_begun_in_a_dead_worker_and_not_yet_in_the_next_is_given_back_like_any_other():
    scene = running(1, 2).says(1, started(1), checkpoint(1), started(2, "b")).saves().dies(1).boot()
    assert scene.at(2) == [1]
    scene.take_unsaved()
    assert scene.says(2, wire.Returned((1,))).unsaved == []
    assert [e.message_id for e in scene.all_sent(wire.Execute, 2)] == [1, 1]


def test_what_had_not_started_goes_to_another_worker_without_a_write():
    scene = running(1, 2, lanes=2).says(1, started(1, "a")).saves()
    scene.dies(1).boot()
    assert [e.message_id for e in scene.all_sent(wire.Execute, 2)] == [2]
    assert [w.claim.message_id for w in scene.unsaved] == [1]


def test_what_a_death_leaves_to_be_written_waits_for_no_company():
    """Whoever is charged has no worker any more, and goes on once that is written."""
    killed = [
        in_step(),
        in_step(timeout_s=10.0, retry_in_s=1.0).after(10.0),
        in_step(function=LIMITED).after(10.0),
    ]
    for scene in killed:
        scene.dies(1, "SIGTERM")
        assert [c.urgent for c in scene.ordered(events.Save)] == [True]


def test_a_run_that_killed_its_worker_is_not_at_work_while_that_is_written():
    scene = in_step().dies(1).stop(1)
    assert scene.ordered(events.Note)[0].text.startswith("stopping: finishing 0 runs")


def test_a_step_that_failed_says_how_long_steps_take():
    scene = running(1, lanes=None, workers=1).says(1, started(1), started(1, "a"))
    failed_step = Step(0, "a", ERROR, error=b'"no"', seconds=2.0, retry_count=1, retry_in_s=30.0)
    scene.says(1, wire.StepFailed(1, 1, failed_step))
    assert scene.core.queues[1].step_s == 2.0


def test_a_dead_worker_is_replaced():
    scene = running(1).says(1, started(1))
    assert [c.worker for c in scene.dies(1).ordered(events.Launch)] == [2]


def test_a_worker_that_dies_with_nothing_on_the_cpu_charges_nobody():
    scene = (
        running(1, 2)
        .says(1, started(1), checkpoint(1), started(2), checkpoint(2))
        .saves()
        .says(1, wire.Idle())
    )
    scene.dies(1).boot()
    assert scene.unsaved == []
    assert sorted(scene.at(2)) == [1, 2]


def test_deaths_in_nobody_s_code_that_follow_one_another_are_charged_to_the_run_that_went_through_them_all():
    scene = running(1, 2)
    for n in range(1, cores.UNEXPLAINED_MAX + 1):
        assert scene.dies(n, None, 70).boot().unsaved == []
        assert sorted(there := scene.at(n + 1)) == [1, 2]
    [write] = scene.dies(n + 1, None, 70).unsaved
    assert (write.claim.message_id, write.crash.step, write.crash.exit_code) == (there[0], None, 70)
    assert scene.saves().boot().at(n + 2) == [there[0]], "alone"


def test_a_step_makes_up_for_deaths_in_nobody_s_code():
    scene = running(1, lanes=1)
    for n in range(1, 3 * cores.UNEXPLAINED_MAX):
        scene.dies(n, None, 70).boot()
        scene.says(n + 1, started(1), checkpoint(1, n - 1)).saves().says(n + 1, wire.Idle())
    assert not any(c.write.crash for c in scene.everything if isinstance(c, events.Save))


def test_an_event_loop_that_dies_while_all_wait_charges_nobody():
    scene = Scene(ASYNC).up().takes(message(1, queue=3), queue=3)
    for n in range(1, 3 * cores.UNEXPLAINED_MAX):
        assert scene.dies(n, "SIGKILL").boot().unsaved == []


def test_code_between_two_steps_is_charged_as_the_functions_own():
    scene = running(1).says(1, started(1), started(1, "a"), checkpoint(1)).saves()
    [write] = scene.dies(1, None, 3).unsaved
    assert (write.crash.step, write.crash.cause, write.crash.exit_code) == (None, "exit", 3)


def test_a_checkpoint_that_arrived_before_the_death_is_kept():
    scene = in_step().says(1, checkpoint(1)).says(1, started(1, "b", 1)).dies(1)
    assert [bool(w.step) for w in scene.unsaved] == [True, False]


@pytest.mark.parametrize("before", range(5))
def test_the_fifth_death_without_a_checkpoint_is_the_last(before):
    scene = in_step(claimed={"crash_count": before}).dies(1)
    [write] = scene.unsaved
    assert write.crash.crash_count == before + 1
    if before < 4:
        assert (write.settle, write.message) == (None, None)
    else:
        assert write.settle.status == ERROR
        assert "died 5 times without a checkpoint between" in write.message.dead_reason
        assert msgspec.json.decode(write.settle.error)["type"] == "pgqrs.errors.WorkerCrashed"


def test_what_killed_its_worker_goes_on_first_and_alone_under_the_same_claim_once_that_is_recorded():
    scene = running(1, 2, workers=2).says(1, started(1, "a")).saves().dies(1).boot()
    assert scene.all_sent(wire.Execute, 3) == []
    [again] = scene.saves().sent(wire.Execute, 3)
    assert (again.message_id, again.claim_no, again.attempt) == (1, 1, 2)
    assert scene.says(3, started(1, "a")).unsaved[0].begin == Begin(11, 2)
    scene.saves().after(5).takes(message(3))
    assert (scene.at(3), scene.at(2)) == ([1], [2, 3])


def test_what_killed_its_worker_has_company_again_behind_its_next_checkpoint():
    scene = running(1, 2, workers=2).says(1, started(1, "a")).saves().dies(1).boot().saves()
    scene.after(5).takes(message(3))
    assert scene.says(3, started(1, "a"), checkpoint(1)).takes(message(4)).at(3) == [1, 4]


def test_what_killed_its_worker_is_given_back_where_there_is_no_time_for_another_life():
    [write] = in_step().stop(1).dies(1).unsaved
    assert (write.crash.crash_count, write.message) == (1, Release())


def test_a_new_worker_is_awaited_and_none_emptied_for_a_run_that_must_be_alone():
    scene = running(1, 2, 3, workers=2).says(1, started(1, "a")).says(2, started(2)).saves()
    scene.dies(1).saves()
    assert (scene.waiting(), scene.at(2), scene.all_sent(wire.Revoke)) == ([1], [2, 3], [])
    assert scene.after(scheduling.COMES_S).sent(wire.Revoke, 2) == [wire.Revoke(2)], "it does not come"
    scene.says(2, wire.Returned((3,)))
    assert scene.waiting() == [1, 3]
    assert scene.boot().at(3) == [1]
    assert scene.at(2) == [2, 3], "it need not be emptied any more"


def test_a_new_worker_has_nothing_that_waits_for_a_commit():
    scene = running(1).says(1, started(1), checkpoint(1))
    assert scene.says(1, wire.Idle()).ordered(events.Hurry)
    scene = Scene().up()
    assert not scene.says(1, wire.Idle()).ordered(events.Hurry)


def test_a_committed_checkpoint_starts_the_budget_anew():
    scene = in_step(claimed={"crash_count": 4}).says(1, checkpoint(1)).saves().says(1, started(1, "b", 1))
    [write] = scene.dies(1).unsaved
    assert (write.crash.crash_count, write.settle) == (1, None)


def test_a_checkpoint_that_is_still_being_committed_starts_the_budget_anew():
    """It is committed in the same turn at the latest, before the crash: a pure step may follow it at once."""
    scene = in_step(claimed={"crash_count": 4}).says(1, checkpoint(1), started(1, "b", 1)).dies(1)
    crashed = scene.unsaved[-1]
    assert (crashed.crash.crash_count, crashed.settle) == (1, None)


def test_a_plain_message_that_kills_is_charged_and_then_dead():
    assert in_step(function=PLAIN).dies(1).unsaved[0].message == Release(refund=False)
    dead = in_step(function=PLAIN, claimed={"read_ct": 5}).dies(1).unsaved[0].message
    assert isinstance(dead, Archive)
    assert "SIGSEGV" in dead.dead_reason


def test_a_run_that_has_killed_before_gets_a_worker_to_itself():
    scene = Scene(workers=2, lanes=4).up().takes(message(1, crash_count=1), message(2), message(3))
    alone = next(w for w in (1, 2) if 1 in scene.at(w))
    assert scene.at(alone) == [1]
    assert sorted(scene.at(3 - alone)) == [2, 3]


def test_a_worker_is_emptied_for_a_run_that_must_be_alone():
    scene = running(1, 2, lanes=4).says(1, started(1)).after(1).takes(message(3, crash_count=1))
    assert scene.sent(wire.Revoke, 1) == [wire.Revoke(2)]
    scene.says(1, wire.Returned((2,)), finished(1))
    assert scene.at(1) == [3]
    assert scene.waiting() == [2]
    assert scene.saves().says(1, started(3), finished(3)).at(1) == [2]


def test_a_worker_is_open_again_when_who_was_to_be_alone_is_gone():
    scene = running(1, 2, lanes=4).says(1, started(1)).after(1).takes(message(3, crash_count=1))
    scene.says(1, wire.Returned((2,)))
    assert (scene.at(1), sorted(scene.waiting())) == ([1], [2, 3])
    scene.tell(events.Gone((Claim(3, 101, 1),)))
    assert (scene.at(1), scene.waiting()) == ([1, 2], [])
    assert scene.after(5).wants


def test_a_worker_that_was_being_emptied_in_vain_goes_on():
    scene = running(1, 2, workers=2).says(1, started(1)).says(2, started(2)).saves()
    scene.after(5).takes(message(3, crash_count=1))
    reserved = next(w.id for w in scene.core.workers.values() if w.reserved)
    other = 3 - reserved
    scene.says(other, *[finished(n) for n in scene.at(other)])
    assert scene.at(other) == [3]
    assert scene.saves().after(5).takes(message(4)).at(reserved)[-1] == 4


def test_a_queue_whose_lanes_are_taken_up_wakes_nobody():
    """It is due, and cannot be claimed from: a timer in the past would be a loop without a pause."""
    scene = Scene(FLOW, PLAIN, lanes=None)
    scene.core.queues[1].measured = scene.core.queues[2].measured = True
    scene.up().takes(queue=2)
    limit = scene.wants[1].limit
    scene.core.queues[1].step_s = 1.0
    scene.takes(*[message(n) for n in range(1, limit + 1)])
    assert scene.core.scheduling._demand() > 0
    assert 1 not in scene.wants
    timer = scene.core.next_timer()
    assert timer is not None
    assert timer > scene.now


# The lease


def test_a_worker_hears_how_long_the_lease_holds_before_it_gets_anything():
    scene = Scene(workers=1).tell(events.Tick()).tell(events.Registered({1: 101}, until=130.0))
    scene.boot()
    assert next(c for c in scene.everything if isinstance(c, events.Send)) == events.Send(
        1, wire.Lease(130.0)
    )
    scene.tell(events.Renewed(160.0))
    assert scene.ordered(events.Send) == [events.Send(1, wire.Lease(160.0))]


def test_what_a_dying_worker_has_runs_nowhere_else_before_it_is_dead():
    scene = in_step(n=1).tell(events.LeaseLost(0)).tell(events.Registered({1: 201}))
    scene.boot().after(1.1)
    new = max(scene.core.workers)
    scene.takes(message(1, claim_no=2))
    assert scene.sent(wire.Execute, new) == []
    scene.dies(1, "SIGKILL")
    assert [f.message_id for f in scene.sent(wire.Execute, new)] == [1]


def test_what_was_written_under_an_earlier_claim_says_nothing_of_the_run_that_was_taken_again():
    """A lease is lost while a write is under way. The message is claimed anew before the answer comes."""
    scene = in_step().says(1, checkpoint(1))
    [late] = [w for w in scene.take_unsaved() if w.step is not None]
    scene.tell(events.LeaseLost(1)).dies(1, "SIGKILL")
    scene.wants.clear()
    scene.registered().after(1.0).boot().after(1.0)
    worker = next(iter(scene.core.workers))
    scene.takes(message(1, claim_no=2)).says(worker, started(1, claim_no=2)).says(
        worker, checkpoint(1, claim_no=2)
    )
    unsaved = scene.core.runs[1].unsaved
    scene.tell(events.Saved([Outcome(late, True, RUNNING)]))
    assert scene.core.runs[1].unsaved == unsaved
    assert scene.sent(wire.Committed) == []
    scene.tell(events.Saved([Outcome(late, False)]))
    assert 1 in scene.core.runs, "it is ours again, whatever became of the earlier claim"


# Time limits


def test_a_step_over_its_limit_is_asked_and_then_made_to_stop():
    scene = in_step(timeout_s=10.0)
    assert scene.after(9.9).ordered(events.Kill) == []
    assert scene.after(0.2).ordered(events.Kill) == [events.Kill(1, False)]
    assert scene.after(0.5).ordered(events.Kill) == []
    assert scene.after(0.6).ordered(events.Kill) == [events.Kill(1, True)]


def test_shortly_before_its_limit_it_is_asked_where_it_is_and_that_is_recorded():
    scene = in_step(timeout_s=10.0)
    assert scene.after(9.8).ordered(events.Dump) == []
    assert scene.core.next_timer() == pytest.approx(scene.now + 0.1)
    assert scene.after(0.11).ordered(events.Dump) == [events.Dump(1)]
    assert scene.after(0.01).ordered(events.Dump) == []
    scene.after(0.1)
    scene.dies(1, "SIGTERM", stacks='  File "x.py", line 3 in spin')
    [write] = scene.take_unsaved()
    assert msgspec.json.decode(write.step.error)["traceback"] == '  File "x.py", line 3 in spin'
    assert write.step.seconds == pytest.approx(9.8 + 0.11 + 0.01 + 0.1)


def test_what_ends_in_time_after_all_is_not_killed():
    scene = in_step(timeout_s=10.0).after(9.95)
    scene.says(1, checkpoint(1))
    assert scene.after(1).ordered(events.Kill) == []


def test_it_wakes_in_time_for_a_limit():
    scene = in_step(timeout_s=0.2)
    assert scene.core.next_timer() <= scene.now + 0.2


@pytest.mark.parametrize(("retry", "count"), [(None, 0), (8.0, 1)])
def test_a_step_killed_at_its_limit_has_failed(retry, count):
    scene = in_step(timeout_s=10.0, retry_in_s=retry).after(10)
    [write] = scene.dies(1, "SIGTERM").unsaved
    assert write.crash is None
    assert (write.step.status, write.step.retry_count, write.step.retry_in_s) == (ERROR, count, retry)
    assert write.message == Release(retry)
    assert msgspec.json.decode(write.step.error)["code"] == "TIMEOUT"


def test_a_step_that_ends_while_it_is_being_killed_is_not_charged():
    scene = in_step(timeout_s=10.0).after(10).says(1, checkpoint(1)).dies(1, "SIGTERM")
    assert [(w.crash, w.step.status) for w in scene.unsaved] == [(None, SUCCESS)]
    assert [e.message_id for e in scene.saves().boot().all_sent(wire.Execute, 2)] == [1]


def test_a_run_whose_step_ended_while_it_was_being_killed_may_wait_for_its_commit():
    """Nothing is on the CPU when the worker dies then, and the limit is no longer that of its run."""
    scene = in_step(timeout_s=10.0).after(10).says(1, checkpoint(1), wire.Idle()).dies(1, "SIGTERM")
    assert [(w.crash, w.step.status) for w in scene.unsaved] == [(None, SUCCESS)]
    assert [e.message_id for e in scene.saves().boot().all_sent(wire.Execute, 2)] == [1]


def test_the_other_lanes_of_a_worker_killed_at_a_limit_are_not_charged():
    scene = (
        running(1, 2).says(1, started(1), checkpoint(1), started(2), started(2, "b", timeout_s=1.0)).saves()
    )
    scene.after(1)
    scene.dies(1, "SIGKILL")
    charged = {w.claim.message_id: (w.crash, w.step is not None) for w in scene.unsaved}
    assert charged == {2: (None, True)}
    assert scene.boot().at(2) == [1]


def test_a_run_that_was_given_back_has_left_its_limit_with_it():
    scene = in_step(timeout_s=10.0).says(1, wire.Returned((1,)))
    assert scene.core.workers[1].on_cpu is None
    assert scene.after(10.0).ordered(events.Kill) == []


def test_a_step_without_a_limit_may_take_for_ever():
    assert in_step().after(1e6).ordered(events.Kill) == []


# The time of a whole run

LIMITED = Function("flow", "workflow", False, "flow", 1, 11, 10.0)
LIMITED_PLAIN = Function("plain", "handler", False, "plain", 2, None, 10.0)


def over_time(write: Write) -> bool:
    told = msgspec.json.decode(write.settle.error)
    return (
        write.settle.status is ERROR
        and told["code"] == "TIMEOUT"
        and write.message == Archive(told["message"])
    )


def test_a_run_over_its_time_in_a_step_is_killed_and_over_whatever_the_steps_policy_says():
    scene = in_step(function=LIMITED, timeout_s=60.0, retry_in_s=1.0).after(9.95)
    assert scene.ordered(events.Dump) == [events.Dump(1)]
    assert scene.after(0.1).ordered(events.Kill) == [events.Kill(1, False)]
    [write] = scene.dies(1, "SIGTERM", stacks="where").unsaved
    assert over_time(write)
    assert (write.step, write.crash.cause, write.crash.step) == (None, "timeout", "a")
    assert msgspec.json.decode(write.settle.error)["traceback"] == "where"


def test_the_nearer_limit_ends_it():
    scene = in_step(function=LIMITED, timeout_s=3.0, retry_in_s=1.0).after(3.0)
    [write] = scene.dies(1, "SIGTERM").unsaved
    assert write.settle is None
    assert write.step.status is ERROR


def test_a_run_over_its_time_in_its_own_code_is_killed():
    scene = in_step(function=LIMITED).says(1, checkpoint(1)).saves().after(10.0)
    assert scene.ordered(events.Kill) == [events.Kill(1, False)]
    assert over_time(scene.dies(1, "SIGTERM").unsaved[0])


def test_a_step_that_ends_in_the_grace_does_not_save_its_run():
    scene = in_step(function=LIMITED).after(10.0).says(1, checkpoint(1)).dies(1, "SIGTERM")
    assert over_time(scene.unsaved[-1])


def test_a_run_that_ends_in_the_grace_has_ended():
    scene = in_step(function=LIMITED).after(10.0).says(1, finished(1)).dies(1, "SIGTERM")
    assert [w.settle.status for w in scene.unsaved] == [SUCCESS]


def test_the_time_goes_on_from_the_first_start_across_restarts():
    scene = Scene(LIMITED).up().takes(message(1, status=RUNNING, attempt=1, age_s=7.0))
    scene.says(1, started(1), started(1, "a")).saves()
    assert scene.after(2.9).ordered(events.Kill) == []
    assert scene.after(0.1).ordered(events.Kill) == [events.Kill(1, False)]


def test_a_run_claimed_after_its_time_is_over_at_once():
    scene = Scene(LIMITED).up().takes(message(1, status=PAUSED, attempt=1, age_s=11.0))
    assert scene.sent(wire.Execute) == []
    assert over_time(scene.unsaved[0])


def test_a_run_over_its_time_between_two_turns_on_the_cpu_is_stopped_and_nobody_is_killed():
    scene = running(1, 2, function=LIMITED).says(1, started(1), checkpoint(1)).after(4)
    scene.says(1, started(2), started(2, "b")).after(6)
    assert scene.sent(wire.Cancel) == [wire.Cancel(1, 1)]
    assert scene.ordered(events.Kill) == []
    assert [w.claim.message_id for w in scene.unsaved if w.settle] == [1]
    assert scene.core.next_timer() <= scene.now + 4


def test_a_back_off_after_a_kill_does_not_outlast_the_runs_time():
    scene = in_step(function=LIMITED, timeout_s=3.0, retry_in_s=3600.0).after(3.0)
    [write] = scene.dies(1, "SIGTERM").unsaved
    assert write.message.delay_s == pytest.approx(7.01)


def test_a_pause_or_a_back_off_beyond_the_runs_time_ends_with_it():
    scene = in_step(function=LIMITED).after(4)
    scene.says(1, paused(position=1, resume_after_s=3600.0))
    assert scene.unsaved[-1].message.delay_s == pytest.approx(6.01)
    scene = in_step(function=LIMITED).after(4)
    scene.says(1, left(position=1, retry_in_s=3600.0))
    assert scene.unsaved[-1].message.delay_s == pytest.approx(6.01)


def test_a_delivery_over_its_time_is_delivered_again_and_then_dead():
    scene = in_step(name=None, function=LIMITED_PLAIN).after(10)
    assert scene.ordered(events.Kill) == [events.Kill(1, False)]
    [write] = scene.dies(1, "SIGTERM").unsaved
    assert (write.settle, write.message.refund) == (None, False)
    scene = in_step(name=None, function=LIMITED_PLAIN, claimed={"read_ct": 5}).after(10).dies(1, "SIGTERM")
    assert "over its time limit of 10 s" in scene.unsaved[0].message.dead_reason


def test_async_code_is_told_how_long_it_has_and_killed_only_where_it_does_not_heed_that():
    limited = Function("aflow", "workflow", True, "aflow", 3, 13, 10.0)
    scene = in_step(function=limited)
    assert scene.all_sent(wire.Execute)[0].seconds_left == 10.0
    assert scene.after(11).ordered(events.Kill) == []
    assert scene.after(4).ordered(events.Kill) == [events.Kill(1, False)]


def test_an_async_run_that_is_not_ours_any_more_is_cancelled_where_it_waits():
    scene = Scene(ASYNC, lanes=2).up().takes(message(1, queue=3), message(2, queue=3), queue=3)
    scene.says(1, started(1), started(2)).saves()
    scene.tell(events.Gone([Claim(1, 103, 1)]))
    assert scene.sent(wire.Cancel) == [wire.Cancel(1, 1, now=True)]
    assert scene.ordered(events.Kill) == []


def test_new_async_runs_do_not_wait_for_the_longest_of_a_worker_that_is_to_be_replaced():
    scene = Scene(ASYNC, lanes=10, max_runs_per_worker=2).up()
    n = 0
    while 3 in scene.wants:
        n += 2
        scene.takes(message(n, queue=3), message(n + 1, queue=3), queue=3).after(0.1).boot()
    assert len(scene.core.workers) == 1 + staffing.ASYNC_LEAVING_MAX, "and no more than these"
    assert [len(scene.at(w)) for w in scene.core.workers] == [2, 2, 2, 2]


def test_a_leaving_worker_does_not_count_for_what_the_others_have_at_hand():
    scene = Scene(ASYNC, lanes=10, max_rss_bytes=100).up()
    scene.takes(*(message(n, queue=3) for n in range(1, 11)), queue=3)
    scene.tell(events.Measured(1, 200)).after(0.1).boot()
    for n in range(11, 17):
        assert scene.wants, f"nothing is claimed any more with {n - 11} of 10"
        scene.takes(message(n, queue=3), queue=3).after(1.0)
    assert len(scene.at(2)) == 6


def test_what_holds_the_event_loop_is_charged_where_another_is_over_its_time():
    """The board names it when the worker is dead."""
    scene = Scene(ASYNC, lanes=4).up().takes(message(1, queue=3), message(2, queue=3), queue=3)
    scene.says(1, started(1), started(2)).saves().says(1, started(1, "timed", timeout_s=2.0))
    assert scene.after(2.0 + limits.ASYNC_GRACE_S).ordered(events.Kill) == [events.Kill(1, False)]
    scene.says(1, started(2, "holds")).dies(1, "SIGTERM")
    [write] = scene.unsaved
    assert (write.claim.message_id, write.crash.step) == (2, "holds")
    assert "holding its event loop beyond the time limit" in write.crash.text
    assert scene.waiting() == [1]


def test_async_code_that_waits_on_beyond_its_limit_is_charged_itself():
    """The loop went on, so whoever was last on it has nothing to do with that."""
    scene = Scene(ASYNC, lanes=4).up().takes(message(1, queue=3), message(2, queue=3), queue=3)
    scene.says(1, started(1), started(2)).saves().says(1, started(1, "timed", timeout_s=2.0))
    scene.after(2.0 + limits.ASYNC_GRACE_S).says(1, wire.Idle()).dies(1, "SIGTERM")
    [write] = scene.unsaved
    assert (write.claim.message_id, write.step.name, write.step.status) == (1, "timed", ERROR)
    assert scene.waiting() == [2]


# Who killed it


@pytest.mark.parametrize(
    ("oom", "cause", "text"), [(False, "signal", "SIGKILL from outside"), (True, "oom", "want of memory")]
)
def test_a_sigkill_that_was_not_ours_is_named_as_such(oom, cause, text):
    [write] = in_step().dies(1, "SIGKILL", oom=oom).unsaved
    assert write.crash.cause == cause
    assert text in write.crash.text


# Workers that do not start


def test_a_worker_that_is_killed_before_it_was_ready_keeps_nobody_awake():
    scene = Scene().registered().stop(3)
    scene.after(limits.BOOT_DEADLINE_S + 1)
    assert scene.core.next_timer() is None


def test_a_worker_that_never_becomes_ready_is_replaced():
    scene = Scene().registered()
    assert scene.after(limits.BOOT_DEADLINE_S - 1).ordered(events.Kill) == []
    scene.after(2)
    assert scene.ordered(events.Kill) == [events.Kill(1, True)]
    assert scene.ordered(events.Launch) == [events.Launch(2, "sync")]


def test_workers_that_die_at_boot_again_and_again_end_it():
    scene = Scene().registered()
    for n in range(1, limits.RESTARTS_MAX + 1):
        assert scene.core.exit is None
        scene.after(3).dies(n, None, 1)
    assert scene.core.exit.code == 1
    assert "workers died while starting 5 times within 30 s" in scene.core.exit.reason


def test_a_worker_that_could_not_be_started_is_tried_again_later_and_later():
    scene = Scene().registered()
    assert scene.dies(1, None, 1).ordered(events.Launch) == [events.Launch(2, "sync")], (
        "once it may be chance"
    )
    for n, wait in ((2, 0.25), (3, 0.5), (4, 1.0)):
        assert scene.dies(n, None, 1).ordered(events.Launch) == []
        assert scene.core.next_timer() == scene.now + wait
        assert scene.after(wait - 0.01).ordered(events.Launch) == []
        assert scene.after(0.02).ordered(events.Launch) == [events.Launch(n + 1, "sync")]
    assert scene.core.exit is None


def test_who_works_goes_on_where_no_other_can_be_started():
    scene = Scene(workers=2).registered().says(1, wire.Ready(1))
    scene.dies(2, None, 1)
    waits = []
    for n in range(3, 12):
        scene.dies(n, None, 1)
        before = scene.now
        while not scene.ordered(events.Launch):
            scene.after(scene.core.next_timer() - scene.now + 0.001)
        waits.append(scene.now - before)
    assert waits == pytest.approx([0.25, 0.5, 1.0, 2.0, 4.0, 5.0, 5.0, 5.0, 5.0], abs=0.01)
    assert scene.core.exit is None
    scene.dies(1).dies(12, None, 1)
    assert scene.core.exit.code == 1, "now nobody works"


def test_a_try_that_is_to_come_keeps_no_supervisor_awake_that_stops():
    scene = Scene(workers=2).up().takes(message(1))
    scene.says(1, started(1)).saves().says(1, started(1, "a"))
    scene.dies(2).dies(3, None, 1).dies(4, None, 1).stop(1)
    assert scene.core.next_timer() == scene.now + 0.25
    scene.after(1.0)
    assert scene.core.next_timer() > scene.now, "a timer of the past would be due again and again"
    assert scene.ordered(events.Launch) == []


def test_workers_that_cannot_be_started_at_one_time_are_one_failure():
    scene = Scene(workers=20).registered()
    for n in range(1, 20):
        scene.dies(n, None, 1)
    assert scene.core.exit is None
    assert len(scene.after(1.0).ordered(events.Launch)) == 18, "one was tried at once"


def test_workers_that_die_at_boot_now_and_then_do_not_end_it():
    scene = Scene().registered()
    for n in range(1, 20):
        scene.after(limits.RESTARTS_WINDOW_S / (limits.RESTARTS_MAX - 1) + 0.1).dies(n, None, 1)
    assert scene.core.exit is None


def test_workers_that_were_ready_may_die_as_often_as_they_like():
    scene = Scene().up()
    for n in range(1, 20):
        scene.dies(n).boot()
    assert scene.core.exit is None


# Memory, and workers that have served


def test_a_step_over_its_memory_is_killed_and_has_failed():
    scene = in_step(memory_bytes=1000)
    assert scene.tell(events.Measured(1, 1000)).ordered(events.Kill) == []
    assert scene.tell(events.Measured(1, 1001)).ordered(events.Kill) == [events.Kill(1, True)]
    scene.dies(1, "SIGKILL")
    [write] = scene.take_unsaved()
    assert write.step.status is ERROR
    error = msgspec.json.decode(write.step.error)
    assert (error["type"], error["message"]) == (
        "builtins.MemoryError",
        "step 'a' was killed at its memory limit of 1,000 bytes",
    )
    assert write.crash is None


def test_memory_counts_for_the_step_that_has_the_limit_only():
    scene = in_step(memory_bytes=None)
    assert scene.tell(events.Measured(1, 10**12)).ordered(events.Kill) == []


def test_a_worker_is_replaced_after_so_many_runs():
    scene = Scene(workers=1, lanes=1, max_runs_per_worker=2).up()
    for n in (1, 2):
        scene.takes(message(n)).says(1, started(n)).saves()
        scene.says(1, wire.Finished(n, 1, b"1"))
    assert scene.ordered(events.Kill) == [events.Kill(1, False)]
    assert [c.worker for c in scene.ordered(events.Launch)] == [2]
    scene.saves()
    assert scene.dies(1, "SIGTERM").core.crashes == 0


def test_a_worker_that_grew_too_large_finishes_what_it_has_begun_and_gives_back_the_rest():
    scene = Scene(workers=1, lanes=2, max_rss_bytes=1000).up()
    scene.takes(message(1), message(2)).says(1, started(1)).saves()
    scene.tell(events.Measured(1, 1001))
    assert scene.ordered(events.Kill) == []
    assert scene.sent(wire.Revoke, 1) == [wire.Revoke(2)]
    scene.says(1, wire.Returned((2,)), wire.Finished(1, 1, b"1"))
    assert scene.ordered(events.Kill) == [events.Kill(1, False)]
    scene.boot()
    assert [f.message_id for f in scene.all_sent(wire.Execute, 2)] == [2]


def test_a_worker_that_begins_what_was_taken_from_us_is_killed():
    """Else a step without an end would keep it, and what it has at hand, for ever."""
    scene = Scene(workers=1, lanes=2).up()
    scene.takes(message(1), message(2))
    scene.tell(events.Gone([scene.core.runs[1].claim]))
    assert scene.sent(wire.Cancel, 1) == [wire.Cancel(1, 1)]
    scene.says(1, started(1))
    assert scene.ordered(events.Kill) == [events.Kill(1, True)]
    scene.dies(1, "SIGKILL").boot()
    assert [f.message_id for f in scene.all_sent(wire.Execute, 2)] == [2]


def test_a_fresh_worker_is_not_replaced_for_what_every_fresh_one_holds():
    scene = Scene(workers=1, max_rss_bytes=1000).up()
    assert scene.tell(events.Measured(1, 5000)).ordered(events.Kill) == []
    assert scene.core.workers[1].state is WorkerState.READY


def test_what_is_taken_from_us_is_stopped():
    scene = in_step(n=1)
    claim = scene.core.runs[1].claim
    scene.tell(events.Gone([claim]))
    assert scene.ordered(events.Note) == [events.Note(cores.NOT_OURS, "warning", 1)]
    assert scene.ordered(events.Kill) == [events.Kill(1, True)]
    assert scene.core.runs == {}
    assert scene.dies(1, "SIGKILL").take_unsaved() == []


def test_a_worker_that_comes_when_it_was_given_up_is_killed_then():
    scene = Scene().registered().after(limits.BOOT_DEADLINE_S)
    assert scene.ordered(events.Kill) == [events.Kill(1, True)]
    assert scene.tell(events.Launched(1, 1001)).ordered(events.Kill) == [events.Kill(1, True)]
    assert scene.tell(events.Launched(2, 1002)).ordered(events.Kill) == []


# Stopping


def test_the_first_stop_finishes_what_runs_and_gives_back_what_does_not():
    scene = running(1, 2).says(1, started(1)).saves().stop(1)
    assert scene.sent(wire.Drain) == [wire.Drain(at_boundary=False)]
    scene.says(1, wire.Returned((2,)))
    assert [(w.claim.message_id, w.message) for w in scene.unsaved] == [(2, Release())]
    scene.saves()
    assert scene.core.exit is None
    assert scene.wants == {} or scene.takes().wants == {}
    scene.says(1, finished(1))
    assert scene.core.exit is None
    assert scene.saves().core.exit == events.Exit(0, "drained")


def test_the_second_stop_ends_runs_at_their_next_step():
    scene = in_step().stop(1).stop(2)
    assert scene.sent(wire.Drain) == [wire.Drain(at_boundary=True)]
    scene.says(1, checkpoint(1), wire.Returned((1,)))
    assert scene.unsaved[-1] == Write(Claim(1, 101, 1), message=Release())


def test_the_third_stop_kills():
    scene = in_step().stop(1).stop(3)
    assert scene.ordered(events.Kill) == [events.Kill(1, True)]
    [write] = scene.dies(1, "SIGKILL").unsaved
    assert (write.crash, write.message) == (None, Release())
    assert scene.saves().core.exit == stopping.STOPPED


def test_a_drain_has_a_time_limit():
    scene = in_step().stop(1)
    assert scene.after(29).ordered(events.Kill) == []
    assert scene.after(1).ordered(events.Kill) == [events.Kill(1, True)]


def test_a_drain_has_a_time_limit_also_where_it_is_told_twice_at_once():
    scene = in_step().stop(2).after(29)
    assert scene.ordered(events.Kill) == []
    assert scene.after(1).ordered(events.Kill) == [events.Kill(1, True)]


def test_a_second_stop_does_not_begin_the_time_anew():
    scene = in_step().stop(1).after(20).stop(2)
    assert scene.after(10).ordered(events.Kill) == [events.Kill(1, True)]


@pytest.mark.parametrize("level", [1, 2, 3])
def test_one_that_loses_its_lease_while_it_stops_has_drained_nothing(level: int):
    scene = in_step().stop(level).tell(events.LeaseLost(0))
    assert scene.core.exit is not None
    assert (scene.core.exit.code, scene.ordered(events.Exit)) == (3, [scene.core.exit])
    assert scene.ordered(events.Kill) == [events.Kill(1, True)], "nothing may run on"


def test_what_waits_for_a_worker_is_given_back_at_once():
    scene = Scene(workers=1).up().takes(message(1))
    scene.dies(1)
    assert scene.waiting() == [1]
    assert [w.message for w in scene.stop(1).unsaved] == [Release()]


def test_a_claim_that_arrives_after_the_stop_is_given_back():
    scene = Scene().up().stop(1).takes(message(1))
    assert scene.all_sent(wire.Execute) == []
    assert [w.message for w in scene.unsaved] == [Release()]
    assert scene.core.exit is None
    assert scene.saves().core.exit == events.Exit(0, "drained")


def test_a_stop_does_not_end_while_a_claim_is_under_way():
    """What it takes would be ours until the lease runs out."""
    scene = Scene().up()
    assert scene.wants
    scene.stop(1)
    assert scene.core.exit is None


def test_nothing_is_launched_or_claimed_while_stopping():
    scene = running(1).says(1, started(1)).stop(1)
    scene.after(1)
    scene.dies(1)
    assert scene.ordered(events.Launch) == scene.ordered(events.Want) == []


def test_a_worker_that_becomes_ready_while_stopping_is_told():
    scene = Scene().registered().stop(1)
    assert scene.says(1, wire.Ready(1)).sent(wire.Drain) == [wire.Drain(False)]


# Burst


def test_a_burst_ends_when_nothing_is_left():
    scene = running(1, burst=True).says(1, started(1), finished(1))
    assert scene.core.exit is None
    scene.saves()
    for _ in range(3):
        if scene.core.exit is None:
            scene.takes() if scene.wants else scene.after(0.5)
    assert scene.core.exit == events.Exit(0, "nothing left to do")


def test_a_burst_with_nothing_to_do_ends_after_one_look():
    assert Scene(burst=True).up().takes().core.exit == events.Exit(0, "nothing left to do")


def test_a_burst_waits_for_what_a_dead_supervisor_holds_behind_a_lock():
    scene = Scene(burst=True).up(locked=True).takes()
    assert scene.core.exit is None
    scene.tell(events.LookedAround([], locked=True))
    assert scene.core.exit is None
    scene.tell(events.LookedAround([], recovered=1))
    assert scene.core.exit is None, "it looks again at what came back"
    assert scene.takes().core.exit == events.Exit(0, "nothing left to do")


def test_what_a_dead_supervisor_held_is_looked_for_once_the_lock_is_gone_and_not_before():
    scene = Scene().up(locked=True).takes()
    assert scene.tell(events.LookedAround([], locked=True)).wants == {}
    assert list(scene.tell(events.LookedAround([])).wants) == [1]
    assert scene.takes().tell(events.LookedAround([])).wants == {}


def test_a_burst_waits_for_every_queue():
    scene = Scene(FLOW, PLAIN, burst=True).up().takes(queue=1)
    assert scene.core.exit is None
    assert scene.takes(queue=2).core.exit is not None


def test_a_burst_looks_again_at_what_it_released_itself():
    scene = in_step().says(1, LONG, started(1, "b", 1)).saves()
    scene.core.settings = Settings(workers=1, lanes=2, burst=True)
    scene.after(1).takes()
    scene.dies(1).boot().saves()
    assert scene.core.exit is None
    assert scene.wants[1].after is None


def test_a_burst_does_not_end_on_a_look_behind_the_watermark():
    scene = running(1, 2, burst=True).says(1, started(1), finished(1), started(2), finished(2)).saves()
    assert scene.wants[1].after is not None
    scene.takes()
    assert scene.core.exit is None
    assert scene.wants[1].after is None


# What the database says


def test_an_end_that_lost_its_claim_is_forgotten():
    scene = in_step().says(1, finished(1)).loses()
    assert scene.core.runs == {}
    assert scene.unsaved == []


def test_a_checkpoint_that_lost_its_claim_stops_its_run():
    scene = running(1, 2).says(1, started(1)).saves().says(1, checkpoint(1), wire.Idle()).loses()
    assert list(scene.core.runs) == [2]
    assert scene.sent(wire.Cancel, 1) == [wire.Cancel(1, 1)]
    assert scene.sent(wire.Committed) == []


def test_a_run_that_is_on_the_cpu_without_a_claim_is_killed():
    scene = running(1).says(1, started(1), started(1, "a")).loses()
    assert scene.ordered(events.Kill) == [events.Kill(1, True)]


def test_a_value_that_the_database_refuses_ends_its_run_in_error():
    scene = in_step().says(1, checkpoint(1)).refuses("NUL")
    assert scene.sent(wire.Cancel, 1) == [wire.Cancel(1, 1)]
    [write] = scene.unsaved
    assert (write.settle.status, write.message) == (ERROR, Archive("NUL"))
    assert msgspec.json.decode(write.settle.error)["message"] == "NUL"
    assert scene.saves().core.runs == {}


def test_an_end_that_the_database_refuses_is_an_error_instead():
    scene = in_step().says(1, finished(1)).refuses("too long")
    assert [w.settle.status for w in scene.unsaved] == [ERROR]


def test_when_even_the_error_is_refused_the_run_is_left_to_its_lease():
    scene = in_step().says(1, finished(1)).refuses("x").refuses("x")
    assert (scene.unsaved, scene.core.runs) == ([], {})


def test_a_plain_message_whose_end_is_refused_is_dead():
    scene = in_step(function=PLAIN).says(1, failed(1)).refuses("x")
    assert [w.message for w in scene.unsaved] == [Archive("x")]


def test_what_was_claimed_unseen_is_given_back():
    scene = running(1)
    unseen = Claim(9, 101, 4)
    scene.tell(events.Held([Claim(1, 101, 1), unseen]))
    assert scene.unsaved == [Write(unseen, message=Release())]


def test_a_claim_that_came_to_nothing_is_asked_for_again():
    scene = Scene().up()
    scene.wants.clear()
    assert scene.tell(events.ClaimLost(1)).wants


def test_a_run_lost_and_taken_again_runs_under_the_new_claim_alone():
    scene = running(1).says(1, started(1)).saves().says(1, checkpoint(1), wire.Idle())
    scene.loses()
    scene.after(1).takes(message(1, claim_no=2))
    scene.says(1, wire.Returned((1,)))  # the old one, stopped: it was told to before the new one came
    executed = [e for e in scene.all_sent(wire.Execute) if e.claim_no == 2]
    assert len(executed) == 1
    assert scene.at(1) == [1]


def test_a_run_that_is_taken_again_while_it_waits_waits_once_and_under_the_new_claim():
    """Somebody released it behind our back: `pgqrs`'s own recovery, or an operator."""
    scene = running(1).after(1)
    scene.dies(1)
    assert scene.waiting() == [1]
    scene.takes(message(1, claim_no=2)).boot()
    assert [(e.message_id, e.claim_no) for e in scene.all_sent(wire.Execute, 2)] == [(1, 2)]


def test_a_run_that_is_lost_while_it_waits_is_not_executed():
    scene = running(1, function=PLAIN).says(1, checkpoint(1), wire.Returned((1,)))
    scene.dies(1)
    scene.loses().boot()
    assert scene.all_sent(wire.Execute, 2) == []


# The lease


def test_a_lost_lease_kills_every_worker_and_forgets_every_run():
    scene = running(1, 2, workers=2).says(1, started(1)).tell(events.LeaseLost(0))
    assert sorted(c.worker for c in scene.ordered(events.Kill)) == [1, 2]
    assert (scene.core.runs, scene.waiting()) == ({}, [])
    assert scene.ordered(events.Launch)


def test_what_waits_for_a_worker_when_the_lease_is_lost_runs_nowhere():
    scene = running(1, 2).dies(1)
    assert sorted(scene.waiting()) == [1, 2]
    assert scene.tell(events.LeaseLost(0)).waiting() == []
    scene.registered().boot().after(1.0)
    assert [f for n in scene.core.workers for f in scene.all_sent(wire.Execute, n)] == []


def test_after_a_lost_lease_nothing_is_claimed_until_it_is_registered_again():
    scene = Scene().up()
    scene.wants.clear()
    scene.tell(events.LeaseLost(0)).boot().after(10)
    assert scene.wants == {}
    assert [w.consumer_id for w in scene.registered().wants.values()] == [101]


def test_what_a_worker_said_before_it_died_of_a_lost_lease_is_dropped():
    scene = running(1).says(1, started(1)).tell(events.LeaseLost(1))
    scene.says(1, checkpoint(1), finished(1)).dies(1, "SIGKILL")
    assert [w for w in scene.unsaved if not w.begin] == []


def test_writes_that_were_under_way_when_the_lease_was_lost_are_counted():
    scene = running(1).says(1, started(1))
    under_way = scene.take_unsaved()
    scene.tell(events.LeaseLost(len(under_way))).stop(1)
    assert scene.core.exit is None
    scene.tell(events.Saved([Outcome(w, False) for w in under_way]))
    assert scene.core.exit == events.Exit(0, "drained")


# Balance


def test_a_worker_with_nothing_to_do_gets_half_of_what_another_has_not_started():
    scene = Scene(workers=2, lanes=8)
    scene.registered().tell(events.Launched(1, 1001)).says(1, wire.Ready(1001))
    scene.takes(*(message(n) for n in range(1, 7))).says(1, started(1)).saves()
    scene.tell(events.Launched(2, 1002)).says(2, wire.Ready(1002))
    assert scene.sent(wire.Revoke, 1) == [wire.Revoke(3)]
    scene.says(1, wire.Returned((4, 5, 6)))
    assert sorted(scene.at(2)) == [4, 5, 6]
    assert scene.unsaved == []


def test_a_revoke_that_comes_back_empty_is_not_repeated_at_once():
    scene = Scene(workers=2, lanes=8)
    scene.registered().tell(events.Launched(1, 1001)).says(1, wire.Ready(1001))
    scene.takes(message(1), message(2)).tell(events.Launched(2, 1002)).says(2, wire.Ready(1002))
    assert scene.says(1, wire.Returned(())).sent(wire.Revoke) == []
    assert len(scene.after(scheduling.REBALANCE_S * 1.1).sent(wire.Revoke)) == 1


# Looking for work


def test_an_empty_queue_is_looked_at_less_and_less_often():
    scene = Scene().up()
    gaps = []
    for _ in range(12):
        scene.takes()
        due = scene.core.queues[1].next_claim_at
        gaps.append(due - scene.now)
        scene.after(gaps[-1])
    assert gaps == sorted(gaps)
    assert gaps[0] < 0.02
    assert gaps[-1] == pytest.approx(scene.core.settings.poll_max_s)


def test_a_hint_looks_at_once():
    scene = Scene().up().takes()
    assert scene.wants == {}
    scene.tell(events.Hinted(("another",)))
    assert scene.wants == {}
    assert scene.tell(events.Hinted(("flow",))).wants
    assert Scene().up().takes().tell(events.Hinted()).wants


def test_a_hint_while_a_claim_is_under_way_looks_again_after_it():
    scene = Scene().up().tell(events.Hinted(("flow",)))
    assert scene.takes().wants


def test_a_full_claim_goes_on_behind_its_watermark_and_the_whole_queue_is_seen_now_and_then():
    scene = Scene(lanes=2).up()
    number, seen = 0, []
    for _ in range(30):
        want = scene.wants[1]
        seen.append(want.after is None)
        new = [message(number := number + 1) for _ in range(want.limit)]
        scene.takes(*new)
        scene.now += 0.1
        for m in new:
            n = m.claim.message_id
            scene.says(1, started(n), finished(n))
        scene.saves()
    assert seen[0]
    assert 2 <= sum(seen) <= 6


def test_what_is_released_to_its_old_place_is_found_behind_the_watermark():
    scene = running(1, 2).says(1, started(1, "a"), LONG, started(1, "b", 1)).saves()
    assert scene.core.queues[1].after is not None
    scene.dies(1)
    assert scene.core.queues[1].after is None


def test_the_number_of_lanes_follows_the_measured_step_time():
    long, tiny = Scene(lanes=None).up(), Scene(lanes=None).up()
    for scene, seconds in ((long, 5.0), (tiny, 0.00001)):
        scene.takes(message(1)).says(1, started(1))
        for n in range(100):
            scene.says(1, checkpoint(1, n, seconds=seconds)).saves()
    assert long.core.scheduling.lanes(FLOW) == 1
    assert tiny.core.scheduling.lanes(FLOW) == scheduling.LANES_MAX


# Whatever happens, in whatever order


class World:
    """A database, workers and time, all at the mercy of `draw`. The core must keep its promises through everything."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw
        self.pick = lambda options: draw(st.sampled_from(options))
        self.scene = Scene(
            FLOW, PLAIN, workers=draw(st.integers(1, 3)), lanes=draw(st.sampled_from([1, 2, None]))
        )
        self.numbers: dict[int, int] = {}  # message id → number of its last claim
        self.owned: dict[int, Claim] = {}  # what the database says that we hold
        self.ready: list[int] = []  # messages that nobody holds
        self.ended: dict[Claim, int] = {}
        self.alive: set[int] = set()
        self.inside: dict[int, dict[int, wire.Execute]] = {}  # worker → what it has, as it believes
        self.next = 1
        self.stopped = 0

    def look(self) -> None:
        """Orders are carried out, and judged."""
        scene = self.scene
        orders, scene.everything = scene.everything, []
        for command in orders:
            if isinstance(command, events.Launch):
                self.alive.add(command.worker)
                self.inside[command.worker] = {}
            elif isinstance(command, events.Send):
                assert command.worker in self.alive, f"{command} to a dead worker"
                if isinstance(command.frame, wire.Execute):
                    elsewhere = [
                        w for w in self.alive if command.frame == self.inside[w].get(command.frame.message_id)
                    ]
                    assert elsewhere == [], f"{command} while worker {elsewhere} has it under the same claim"
                    self.inside[command.worker][command.frame.message_id] = command.frame
            elif isinstance(command, events.Kill):
                assert command.worker in self.alive
        core = scene.core
        placed = [n for w in core.workers.values() for n in w.runs]
        assert len(placed) == len(set(placed)), f"a run is at two workers: {placed}"
        waiting = [r.id for r in core.waiting]
        assert len(waiting) == len(set(waiting)), f"a run waits twice: {waiting}"
        assert not set(placed) & set(waiting)
        assert core._saving == len(scene.unsaved), "writes under way are miscounted"
        for worker in core.workers.values():
            assert worker.bytes == sum(r.bytes for r in worker.runs.values())
            for run in worker.runs.values():
                assert core.runs.get(run.id) is run, "a worker has what is not held"
        for n, claim in self.owned.items():
            assert n in core.runs or any(w.claim == claim for w in scene.unsaved), f"{claim} is forgotten"
        assert set(core.workers) == self.alive

    def step(self) -> None:
        actions = [self.tick, self.commit]
        if self.scene.launches:
            actions.append(self.launch)
        if self.scene.wants:
            actions += [self.answer] * 3
        if self.alive:
            actions += [self.speak] * 6 + [self.die]
        if self.owned:
            actions.append(self.steal)
        if self.stopped < 3:
            actions.append(self.maybe_stop)
        self.pick(actions)()
        self.look()

    def tick(self) -> None:
        self.scene.after(self.pick([0.0, 0.01, 0.3, 1.0, 20.0]))

    def launch(self) -> None:
        n = self.scene.launches.pop(0).worker
        if n in self.alive:
            self.scene.tell(events.Launched(n, 1000 + n)).says(n, wire.Ready(1000 + n))

    def answer(self) -> None:
        scene = self.scene
        queue = self.pick(sorted(scene.wants))
        if self.pick([False] * 9 + [True]):
            scene.wants.pop(queue)
            scene.tell(events.ClaimLost(queue))
            return
        taken = []
        for _ in range(self.pick(range(min(scene.wants[queue].limit, 4) + 1))):
            again = [n for n in self.ready if n % 2 == queue % 2]
            if again and self.pick([True, False]):
                n = again[0]
                self.ready.remove(n)
            else:
                n = next(i for i in range(self.next, self.next + 2) if i % 2 == queue % 2)
                self.next = n + 1
            self.numbers[n] = self.numbers.get(n, 0) + 1
            status = self.pick([None, RUNNING, CANCELLING]) if queue == 1 else None
            one = message(n, self.numbers[n], queue, status=status, crash_count=self.pick([0, 0, 0, 1, 4]))
            self.owned[n] = one.claim
            taken.append(one)
        scene.takes(*taken, queue=queue)

    def commit(self) -> None:
        outcomes = []
        for write in self.scene.take_unsaved():
            n = write.claim.message_id
            if self.owned.get(n) != write.claim:
                outcomes.append(Outcome(write, False))
            elif self.pick([False] * 19 + [True]):
                outcomes.append(Outcome(write, False, failure="refused"))
                if write.message is not None and write.message == Archive("refused"):
                    del self.owned[n]  # left to the lease
            else:
                status = write.settle.status if write.settle else self.pick([RUNNING, RUNNING, CANCELLING])
                outcomes.append(Outcome(write, True, status if n % 2 else None))
                if write.message is not None:
                    self.ended[write.claim] = self.ended.get(write.claim, 0) + 1
                    assert self.ended[write.claim] == 1
                    del self.owned[n]
                    if isinstance(write.message, Release):
                        self.ready.append(n)
        self.scene.tell(events.Saved(outcomes))

    def steal(self) -> None:
        """Somebody else takes a message, and perhaps gives it back."""
        n = self.pick(sorted(self.owned))
        del self.owned[n]
        self.numbers[n] += 1
        if self.pick([True, False]):
            self.ready.append(n)

    def speak(self) -> None:
        """Any frame at all, of a run that the worker has or of one that it cannot know."""
        worker = self.pick(sorted(self.alive))
        inside = self.inside[worker]
        n = (
            self.pick(sorted(inside))
            if inside and self.pick([True] * 4 + [False])
            else self.pick(range(1, 30))
        )
        order = inside.get(n)
        claim_no = order.claim_no if order else 1
        position = self.pick([0, 1, 2])
        frame = self.pick([
            started(n, claim_no=claim_no), started(n, "a", position, claim_no, timeout_s=self.pick([None, 0.5])),
            checkpoint(n, position, claim_no), finished(n, claim_no), failed(n, claim_no), wire.Idle(), wire.Ready(1),
            left(n, position, claim_no, 1.0),
            paused(n, position, claim_no), wire.Returned((n,) if order else ()),
        ])  # fmt: skip
        if isinstance(frame, wire.Returned | wire.Finished | wire.Failed | wire.Paused | wire.StepFailed):
            inside.pop(n, None)
        self.scene.says(worker, frame)

    def die(self) -> None:
        worker = self.pick(sorted(self.alive))
        self.alive.discard(worker)
        self.inside.pop(worker)
        self.scene.launches = [c for c in self.scene.launches if c.worker != worker]
        self.scene.dies(worker, *self.pick([("SIGKILL", None), (None, 0), (None, 7)]))

    def maybe_stop(self) -> None:
        if self.pick([False] * 29 + [True]):
            self.stopped += 1
            self.scene.stop(self.stopped)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_whatever_happens_a_run_is_at_one_worker_and_every_claim_ends_once(data):
    world = World(data.draw)
    world.scene.registered()
    world.look()
    for _ in range(60):
        if world.scene.core.exit:
            break
        world.step()


# What cannot be handed to a worker


@pytest.mark.parametrize(
    "what",
    [
        {"payload": b"x" * (wire.VALUE_BYTES_MAX + 1)},
        {"steps": (RecordedStep("a", 0, "SUCCESS", b"x" * (wire.VALUE_BYTES_MAX + 1), None, 0),)},
        {"unreadable": "a row in the database cannot be read"},
    ],
    ids=["payload", "step", "row"],
)
@pytest.mark.parametrize("function", [FLOW, PLAIN], ids=["run", "message"])
def test_what_cannot_be_handed_to_a_worker_is_given_up_with_words(what, function):
    queue = function.queue_id
    scene = Scene(function).up().takes(message(1, queue=queue, **what), message(2, queue=queue), queue=queue)
    [write] = scene.unsaved
    assert isinstance(write.message, Archive)
    assert "cannot be read" in write.message.dead_reason or "bytes" in write.message.dead_reason
    assert (write.settle is not None) == (function is FLOW)
    assert scene.at(1) == [2]


def test_no_chunk_of_a_history_is_more_than_a_frame_holds():
    sizes = [scheduling.HISTORY_CHUNK_BYTES - 1, wire.VALUE_BYTES_MAX, 10, scheduling.HISTORY_CHUNK_BYTES, 10]
    steps = [RecordedStep(f"s{n}", n, "SUCCESS", b"x" * size, None, 0) for n, size in enumerate(sizes)]
    chunks = list(scheduling._chunks(steps))
    assert [s for chunk in chunks for s in chunk] == steps
    for chunk in chunks:
        wire.encode(wire.History(1, chunk))


def test_the_errors_of_a_history_count_as_its_results_do():
    half = b"x" * (scheduling.HISTORY_CHUNK_BYTES // 2 + 1)
    steps = [RecordedStep("a", 0, "ERROR", None, half, 0), RecordedStep("b", 1, "SUCCESS", half, None, 0)]
    assert list(scheduling._chunks(steps)) == [(steps[0],), (steps[1],)]
    assert list(scheduling._chunks(steps[::-1])) == [(steps[1],), (steps[0],)]
