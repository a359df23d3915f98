"""The core, where a run waits for another, does not leave, or holds others up; and what the other tests of it do not reach."""

import itertools

from supervisors import wire
from supervisors.core import events, limits, scheduling, staffing, waits
from supervisors.core.state import Function
from tests.core.test_core import (
    ASYNC,
    FLOW,
    Scene,
    checkpoint,
    failed,
    filled,
    finished,
    in_step,
    left,
    message,
    paused,
    running,
    started,
)
from tests.test_recall import pair, recalled, second

CHILD = Function("child", "workflow", False, "child", 4, 14)


def waiting(n: int, of: int, workflow: str = "child", blocks: bool = True) -> wire.Waiting:
    return wire.Waiting(n, 1, of, workflow, blocks)


def refusals(scene: Scene) -> list[str]:
    return [f.why for f in scene.sent(wire.WaitRefused)]


# A run that waits for another


def test_a_worker_whose_run_waits_loses_all_else_and_another_stands_in_for_it():
    scene = pair(1, 2, 3, workers=1).says(1, started(1), checkpoint(1)).saves().says(1, started(2, "ask"))
    scene.says(1, waiting(2, of=9))
    assert scene.ordered(events.Launch) == [events.Launch(2, "sync")]
    recalled(scene, entered=2)
    assert scene.at(1) == [2]
    second(scene)
    assert (scene.at(2), scene.waiting()) == ([1], [3]), "what would wait as well comes later"


def test_a_worker_whose_run_waits_gets_nothing_more():
    scene = pair(1, workers=1).says(1, started(1, "ask"), waiting(1, of=9, workflow="flow")).saves()
    scene.wants.clear()
    assert scene.after(1.0).wants == {}
    assert second(scene).wants[1].limit > 0


def test_a_worker_without_a_gate_is_asked_for_what_it_has_not_begun():
    scene = running(1, 2, lanes=4).says(1, started(1, "ask"), waiting(1, of=9))
    assert scene.sent(wire.Revoke, 1) == [wire.Revoke(2)]


def test_who_stood_in_goes_when_he_has_had_nothing_to_do_for_a_while():
    scene = second(pair(1, workers=1).says(1, started(1, "ask"), waiting(1, of=9)))
    scene.says(1, wire.Waiting(1, 1))
    assert scene.after(staffing.SPARE_S / 2).ordered(events.Kill) == []
    timer = scene.core.next_timer()
    assert timer is not None
    assert timer <= scene.now + staffing.SPARE_S
    scene.after(staffing.SPARE_S).after(0.01)
    assert scene.ever(events.Kill) == [events.Kill(2, False)]
    assert scene.dies(2, None, 0).ordered(events.Launch) == []


def test_as_many_stand_in_as_wait_and_then_it_is_an_error_that_names_both():
    scene = pair(1, lanes=1, workers=1)
    for n in range(1, waits.WAITING_MAX + 1):
        scene.says(n, started(n, "ask"), waiting(n, of=n + 1, workflow="flow")).saves()
        assert (scene.all_sent(wire.WaitRefused), len(scene.launches)) == ([], 1)
        scene.launches.clear()
        scene.tell(events.Launched(n + 1, 2000 + n, gated=True)).says(n + 1, wire.Ready(1))
        scene.after(1.0).takes(message(n + 1))
    last = waits.WAITING_MAX + 1
    [why] = refusals(scene.says(last, started(last, "ask"), waiting(last, of=99, workflow="flow")))
    assert why.startswith(f"run {last} waits for run 99, and so do runs in {waits.WAITING_MAX} other workers")
    assert scene.launches == []


def test_workers_that_do_not_wait_keep_nobody_from_waiting():
    many = waits.WAITING_MAX + 2
    scene = pair(1, lanes=1, workers=many)
    assert len(scene.core.workers) == many
    scene.says(1, started(1, "ask"), waiting(1, of=99))
    assert scene.all_sent(wire.WaitRefused) == []


def test_a_run_that_waits_for_itself_or_in_a_circle_is_told_so():
    scene = pair(1, workers=1).says(1, started(1, "ask"), waiting(1, of=1))
    assert refusals(scene) == ["run 1 waits for run 1, which is itself"]
    scene = pair(1, lanes=1, workers=1).says(1, started(1, "ask"), waiting(1, of=2, workflow="flow"))
    second(scene).takes(message(2))
    scene.says(2, started(2, "ask"), waiting(2, of=1, workflow="flow"))
    assert refusals(scene) == ["run 2 waits for run 1, which waits for it in turn"]


def test_what_waits_for_others_comes_after_what_is_waited_for():
    """With as many of them waiting as there are to be workers, a further one would wait as well."""
    scene = Scene(FLOW, CHILD, workers=1, lanes=1).registered()
    scene.launches.clear()
    scene.tell(events.Launched(1, 1001, gated=True)).says(1, wire.Ready(1001))
    if 4 in scene.wants:
        scene.takes(queue=4).after(1.0)
    scene.wants.pop(4, None)
    scene.takes(message(1)).says(1, started(1, "ask"), waiting(1, of=9)).saves()
    scene.wants.clear()
    for queue in scene.core.queues.values():
        queue.wanted = 0
    scene.launches.clear()
    second(scene).after(1.0)
    assert list(scene.wants) == [4]
    scene.takes(message(9, queue=4), queue=4).says(2, started(9), finished(9)).says(1, wire.Waiting(1, 1))
    assert 1 in scene.saves().says(1, finished(1)).saves().after(1.0).wants


def test_a_function_that_waits_for_itself_is_not_held_back():
    scene = second(pair(1, lanes=1, workers=1).says(1, started(1, "ask"), waiting(1, of=2, workflow="flow")))
    assert scene.after(1.0).wants[1].limit == 1


def test_async_runs_that_wait_take_up_no_lane():
    scene = Scene(ASYNC, workers=1, lanes=2).up()
    scene.takes(message(1, queue=3), message(2, queue=3), queue=3)
    scene.says(1, started(1), started(2)).saves().after(1.0)
    assert scene.wants == {}
    scene.says(1, waiting(1, of=9, blocks=False)).after(1.0)
    assert scene.wants[3].limit == 1
    assert scene.ever(events.Launch) == [events.Launch(1, "async")], (
        "nobody stands in for a worker that works"
    )


def test_a_stop_ends_waits_for_what_nobody_may_be_left_to_do():
    scene = pair(1, workers=1).says(1, started(1, "ask"), waiting(1, of=9)).saves()
    scene.launches.clear()
    assert scene.stop(1).sent(wire.Cancel, 1) == [wire.Cancel(1, 1)]
    scene = pair(1, workers=1).says(1, started(1, "ask")).saves().stop(1)
    assert scene.says(1, waiting(1, of=9)).sent(wire.Cancel, 1) == [wire.Cancel(1, 1)]


def test_a_run_whose_worker_died_waits_no_more():
    scene = second(pair(1, lanes=1, workers=1).says(1, started(1, "ask"), waiting(1, of=9)).saves())
    scene.dies(1).saves()
    assert all(not w.blocked and not w.waits for w in scene.core.workers.values())
    assert scene.at(2) == [1]


# Code that does not leave


def test_code_that_goes_on_after_its_run_was_to_leave_is_killed():
    scene = in_step().says(1, left())
    timer = scene.core.next_timer()
    assert timer is not None
    assert timer <= scene.now + limits.LEAVES_S
    assert scene.after(limits.LEAVES_S * 0.9).ordered(events.Kill) == []
    assert scene.after(limits.LEAVES_S * 0.2).ordered(events.Kill) == [events.Kill(1, True)]
    assert any("bare `except:`" in n.text for n in scene.ever(events.Note))
    assert scene.dies(1, "SIGKILL").core.crashes == 0


def test_code_that_ends_in_time_is_let_be():
    scene = in_step().says(1, left(), wire.Left(1))
    assert scene.after(limits.LEAVES_S * 2).ever(events.Kill) == []


def test_a_pause_is_to_be_left_too():
    scene = in_step().says(1, paused())
    assert scene.after(limits.LEAVES_S * 1.1).ordered(events.Kill) == [events.Kill(1, True)]


def test_code_of_a_run_that_the_worker_does_not_have_is_watched_while_it_is_in_it():
    scene = pair(1, 2).says(1, started(1)).saves()
    scene.tell(events.Inside(1, 7)).after(limits.LEAVES_S * 0.9).tell(events.Inside(1, 0))
    assert scene.after(limits.LEAVES_S).ever(events.Kill) == []
    scene.tell(events.Inside(1, 7)).after(limits.LEAVES_S * 0.5).tell(events.Inside(1, 7))
    assert scene.after(limits.LEAVES_S * 0.6).ordered(events.Kill) == [events.Kill(1, True)]


def test_a_run_does_not_come_back_before_its_code_has_left():
    scene = running(1, workers=2, lanes=1)
    [n] = [w for w in (1, 2) if scene.at(w)]
    scene.says(n, started(1, "a"), left()).saves()
    scene.after(1.0).takes(message(1, claim_no=2))
    assert scene.waiting() == [1]
    scene.says(n, wire.Left(1))
    assert scene.waiting() == []


def test_an_async_run_that_does_not_heed_its_end_is_ended_with_its_worker():
    scene = running(1, function=ASYNC).says(1, started(1)).saves()
    scene.says(1, checkpoint(1), wire.Idle()).loses()
    assert scene.sent(wire.Cancel) == [wire.Cancel(1, 1, now=True)]
    assert scene.after(limits.LEAVES_S * 1.1).ordered(events.Kill) == [events.Kill(1, True)]


# Who holds others up


def test_code_between_two_steps_that_holds_others_up_is_told_once():
    scene = pair(1, 2, workers=1).says(1, started(1), checkpoint(1), started(2)).saves()
    scene.after(limits.HOLDS_UP_S * 0.9)
    assert scene.ever(events.Note) == []
    scene.after(limits.HOLDS_UP_S * 0.2)
    [note] = scene.ever(events.Note)
    assert (note.run, "a lock" in note.text, "lanes=1" in note.text) == (2, True, True)
    scene.after(limits.HOLDS_UP_S)
    assert len(scene.ever(events.Note)) == 1


def measured(scene, worker, cpu_s, after):
    scene.now += after
    return scene.tell(events.Measured(worker, 1, cpu_s))


def held_up():
    scene = pair(1, 2, workers=1).says(1, started(1), checkpoint(1), started(2)).saves()
    return measured(scene.after(limits.HOLDS_UP_S * 1.1), 1, 5.0, 0.1)


def test_runs_that_wait_for_one_another_go_on_in_another_worker_one_at_a_time():
    scene = held_up()
    assert scene.ever(events.Kill) == []
    assert measured(scene, 1, 5.01, limits.WAITS_S).ordered(events.Kill) == [events.Kill(1, True)]
    told = scene.ever(events.Note)[-1]
    assert (told.run, "flow one at a time" in told.text) == (2, True)
    scene.take_unsaved()
    scene.dies(1, "SIGKILL").boot()
    assert scene.unsaved == []
    assert len(scene.at(2)) == 1
    assert len(scene.waiting()) == 1
    [first] = scene.at(2)
    scene.says(2, started(first), checkpoint(first, 1)).saves()
    assert scene.at(2) == [first], "it gets no other beside it"


def test_code_that_computes_is_let_go_on():
    scene = held_up()
    for n in range(1, 10):
        measured(scene, 1, 5.0 + n * limits.WAITS_S * 0.9, limits.WAITS_S)
    assert scene.ever(events.Kill) == []
    # It begins to wait later.
    measured(scene, 1, 5.0 + 9 * limits.WAITS_S * 0.9, limits.WAITS_S)
    assert scene.ever(events.Kill) == [events.Kill(1, True)]


def test_code_that_has_come_to_its_next_step_is_not_measured_any_more():
    scene = held_up().says(1, started(2, "b"))
    measured(scene, 1, 5.0, limits.WAITS_S * 2)
    assert scene.ever(events.Kill) == []


def test_a_long_step_and_code_beside_which_nothing_waits_are_nobodys_business():
    scene = pair(1, 2, workers=1).says(1, started(1), checkpoint(1), started(2, "long")).saves()
    assert scene.after(limits.HOLDS_UP_S * 2).ever(events.Note) == []
    scene = pair(1, workers=1).says(1, started(1)).saves()
    assert scene.after(limits.HOLDS_UP_S * 2).ever(events.Note) == []


# The lease, the counts


def test_only_workers_that_are_ready_and_are_to_live_hear_of_the_lease():
    scene = Scene(workers=3).registered()
    for n in (1, 2):
        scene.tell(events.Launched(n, 1000 + n)).says(n, wire.Ready(1000 + n))
    scene.takes(message(1))
    [busy] = [n for n in (1, 2) if scene.at(n)]
    scene.says(busy, started(1, "a", timeout_s=1.0)).saves().after(1.1)
    assert scene.ever(events.Kill)
    scene.tell(events.Renewed(500.0))
    assert [c.worker for c in scene.out if isinstance(c, events.Send)] == [3 - busy]


def test_finished_and_failed_are_counted_when_that_is_recorded_and_nothing_else_is():
    scene = running(1, 2, 3, 4, lanes=4)
    scene.says(1, started(1), finished(1), started(2), failed(2), started(3, "a"), left(3))
    assert (scene.core.finished, scene.core.failed) == (0, 0)
    scene.saves()
    assert (scene.core.finished, scene.core.failed) == (1, 1)
    scene.says(1, started(4), checkpoint(4)).saves()
    assert (scene.core.finished, scene.core.failed) == (1, 1)
    scene.says(1, failed(4)).loses()
    assert (scene.core.finished, scene.core.failed) == (1, 1), "it was another's by then"


# Scheduling


def test_queues_take_turns_where_there_is_room_for_one():
    scene = Scene(FLOW, CHILD, workers=1, lanes=1).up()
    asked = []
    for n in range(1, 7):
        [queue] = scene.wants
        asked.append(queue)
        scene.takes(message(n, queue=queue), queue=queue)
        scene.says(1, started(n), finished(n)).saves().after(0.01)
    assert asked.count(1) == asked.count(4) == 3
    assert all(a != b for a, b in itertools.pairwise(asked))


def test_a_worker_owes_a_queue_no_more_than_one_run():
    scene = filled(FLOW, CHILD, lanes=None).after(1.0)
    worker, other = scene.core.workers[1], scene.core.queues[4]
    other.step_s = 0.05
    assert (len(worker.runs), scene.core.scheduling._free(worker, 1, other)) == (10, 1)
    assert scene.core.scheduling._free(worker, 10, other) == 1, "also one that has as many as it should"
    scene.tell(events.Taken(events.Want(4, 104, 1, 5), [message(900, queue=4)]))
    assert 900 in worker.runs
    assert scene.core.scheduling._free(worker, 1, other) == 0


def test_nothing_is_asked_back_of_a_worker_that_is_being_killed():
    scene = Scene(workers=2, lanes=8).registered()
    scene.launches.clear()
    scene.tell(events.Launched(1, 1001)).says(1, wire.Ready(1001))
    scene.takes(message(1), message(2), message(3)).says(1, started(1, "a", timeout_s=1.0)).saves().after(1.1)
    assert scene.ever(events.Kill) == [events.Kill(1, False)]
    scene.tell(events.Launched(2, 1002)).says(2, wire.Ready(1002)).after(scheduling.REBALANCE_S * 2)
    assert scene.all_sent(wire.Revoke) == []
