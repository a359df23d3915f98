"""Which queues a supervisor claims from, and when: none is forgotten, and with many of them no event costs a walk over all."""

import pytest

from pgqrs.model.writes import Claim, Claimed
from supervisors import wire
from supervisors.core import events
from supervisors.core.core import Core
from supervisors.core.scheduling import QUEUES_FEW
from supervisors.core.state import Function, Settings

FEW, MANY = 3, 50


class Queues:
    """A core with this many workflows, all workers ready, and the claims that it has under way."""

    def __init__(self, count: int, workers: int = 1, lanes: int | None = 2) -> None:
        functions = [Function(f"f{n}", "workflow", False, f"f{n}", n, 100 + n) for n in range(1, count + 1)]
        self.core = Core(functions, Settings(workers=workers, lanes=lanes))
        self.now = 100.0
        self.wants: dict[int, events.Want] = {}
        self.message = 0
        self.tell(events.Tick())
        for worker in list(self.core.workers):
            self.tell(events.Launched(worker, 1000 + worker))
            self.tell(events.Received(worker, wire.Ready(1000 + worker)))
        self.register()

    def register(self) -> None:
        self.tell(events.Registered({q: 100 + q for q in self.core.queues}))

    def tell(self, event: events.Event) -> list[events.Command]:
        out = self.core.handle(event, self.now)
        for command in out:
            if isinstance(command, events.Want):
                assert command.queue_id not in self.wants, "a second claim while one is under way"
                self.wants[command.queue_id] = command
        return out

    def pass_s(self, seconds: float) -> None:
        self.now += seconds
        self.tell(events.Tick())

    def answer(self, *full: int, ready: tuple[int, ...] = ()) -> list[events.Want]:
        """Every claim under way is answered: those of the queues named here got all that they asked for, the others nothing."""
        wants, self.wants = list(self.wants.values()), {}
        for want in wants:
            count = want.limit if want.queue_id in full and not want.polls else 0
            messages = []
            for _ in range(count):
                self.message += 1
                messages.append(Claimed(Claim(self.message, want.consumer_id, 1), b'{"input": 1}', 1))
            after = ("vt", self.message) if messages else want.after
            taken = events.Taken(want, messages, after, want.queue_id in ready)
            self.tell(taken)
        return wants

    def handle_all(self) -> None:
        for worker in self.core.workers.values():
            for run in list(worker.runs.values()):
                self.tell(events.Received(worker.id, wire.Started(run.id, run.claim.claim_no)))
                self.tell(events.Received(worker.id, wire.Finished(run.id, run.claim.claim_no, b"1")))

    def asleep(self) -> "Queues":
        """Nothing was found in any queue, again and again."""
        for _ in range(40 * len(self.core.queues)):
            self.answer()
            self.pass_s(0.05)
            if all(q.poll_s >= self.core.settings.poll_max_s for q in self.core.queues.values()):
                break
        while self.wants:
            self.answer()
        return self


@pytest.mark.parametrize("count", [FEW, MANY])
def test_every_queue_is_claimed_from_in_turn(count):
    scene = Queues(count)
    seen: list[int] = []
    for _ in range(count * 2):
        seen += [w.queue_id for w in scene.answer(*range(1, count + 1))]
        scene.handle_all()
    assert set(seen) == set(range(1, count + 1))
    counts = [seen.count(q) for q in range(1, count + 1)]
    assert max(counts) - min(counts) <= 2, counts


@pytest.mark.parametrize("count", [1, FEW, MANY])
def test_after_a_lost_lease_all_queues_are_claimed_from_again(count):
    scene = Queues(count, workers=2)
    scene.answer()
    scene.tell(events.LeaseLost(0))
    for worker in list(scene.core.workers):
        scene.tell(events.Exited(worker, "SIGKILL", None))
    scene.wants = {}
    scene.pass_s(1.0)
    for worker in list(scene.core.workers):
        scene.tell(events.Launched(worker, 1))
        scene.tell(events.Received(worker, wire.Ready(1)))
    scene.register()
    seen = set()
    for _ in range(count):
        seen |= {w.queue_id for w in scene.answer()}
        scene.pass_s(0.1)
    assert seen == set(scene.core.queues)


@pytest.mark.parametrize("count", [FEW, MANY])
def test_a_claim_that_came_to_nothing_is_made_again(count):
    scene = Queues(count)
    lost = list(scene.wants)
    scene.wants = {}
    for queue_id in lost:
        scene.tell(events.ClaimLost(queue_id))
    assert scene.wants


@pytest.mark.parametrize("count", [FEW, MANY])
def test_a_queue_that_is_hinted_at_is_claimed_from_at_once(count):
    scene = Queues(count).asleep()
    scene.tell(events.Hinted((f"f{count}",)))
    assert [(w.queue_id, w.polls) for w in scene.wants.values()] == [(count, False)]


def test_a_hint_while_its_claim_is_under_way_is_followed_by_another_claim():
    scene = Queues(FEW).asleep()
    for _ in range(2):
        scene.tell(events.Hinted(("f2",)))
    scene.answer()
    assert [w.queue_id for w in scene.wants.values()] == [2]


def test_with_many_queues_a_hint_without_a_name_asks_for_one_look():
    scene = Queues(MANY).asleep()
    scene.tell(events.Hinted(None))
    assert len(scene.wants) == MANY
    assert all(w.polls for w in scene.wants.values())
    scene.answer(ready=(7,))
    assert [(w.queue_id, w.polls) for w in scene.wants.values()] == [(7, False)]


def test_with_few_queues_a_hint_without_a_name_claims_at_once():
    scene = Queues(QUEUES_FEW, lanes=QUEUES_FEW).asleep()
    scene.tell(events.Hinted(None))
    assert len(scene.wants) == QUEUES_FEW
    assert not any(w.polls for w in scene.wants.values())


def test_a_look_takes_no_room_from_claims():
    scene = Queues(MANY).asleep()
    scene.pass_s(1.0)
    assert len(scene.wants) == MANY
    assert scene.core.scheduling.wanted == 0
    looks, scene.wants = scene.wants, {}
    scene.tell(events.Taken(looks[3], [], ready=True))
    assert [(w.queue_id, w.limit) for w in scene.wants.values()] == [(3, 2)]
    assert len(looks) == MANY


def test_an_event_of_one_queue_asks_nothing_of_the_others(monkeypatch):
    """As a count of what is looked at, since a time says nothing on a busy machine."""
    looked = 0
    scene = Queues(1000).asleep()
    scene.tell(events.Hinted(("f500",)))
    scene.answer(500)
    lanes = scene.core.scheduling.lanes

    def counted(function: Function) -> int:
        nonlocal looked
        looked += 1
        return lanes(function)

    monkeypatch.setattr(scene.core.scheduling, "lanes", counted)
    for _ in range(10):
        scene.handle_all()
        scene.pass_s(0.001)
        scene.answer(500)
    assert looked < 500


# What was claimed before goes first


def backlogged() -> Queues:
    scene = Queues(1, lanes=10)
    scene.answer(1)
    scene.handle_all()
    return scene


def next_want(scene: Queues, later_s: float) -> events.Want:
    """The claim that follows the one under way, which got all that it asked for."""
    scene.now += later_s
    scene.answer(1)
    scene.handle_all()
    [want] = scene.wants.values()
    return want


def test_behind_a_backlog_half_of_a_claim_is_for_what_is_due_again():
    want = next_want(backlogged(), later_s=0.2)
    assert want.limit // 2 <= want.first <= (want.limit + 1) // 2
    assert want.first > 0


def test_it_is_not_looked_for_at_every_claim():
    scene = backlogged()
    assert next_want(scene, 0.2).first > 0
    assert next_want(scene, 0.01).first == 0
    assert next_want(scene, 0.2).first > 0


def test_one_at_a_time_what_is_new_has_its_turn_too():
    scene = Queues(1, lanes=1)
    firsts = []
    for _ in range(8):
        scene.now += 2.0
        scene.handle_all()
        firsts += [w.first for w in scene.answer(1)]
    assert set(firsts[2:]) == {0, 1}
    assert firsts[2:].count(1) == firsts[2:].count(0)


def test_without_a_backlog_nothing_has_to_go_first():
    scene = Queues(1, lanes=10)
    scene.answer()
    scene.pass_s(0.1)
    assert [w.first for w in scene.wants.values()] == [0]


def test_lapsed_messages_are_looked_for_behind_a_backlog_that_never_ends():
    scene = backlogged()
    lapsed = 0
    for _ in range(10):
        scene.now += 0.5
        scene.handle_all()
        lapsed += sum(w.lapsed and w.first > 0 for w in scene.answer(1))
    assert lapsed >= 4


# Large messages


def test_a_claim_is_bounded_by_the_bytes_of_what_the_queue_holds():
    scene = Queues(1, workers=4, lanes=100)
    [want] = scene.wants.values()
    large = [Claimed(Claim(n, want.consumer_id, 1), b"x" * (4 * 1024 * 1024), 1) for n in range(1, 4)]
    scene.wants = {}
    scene.tell(events.Taken(want, large))
    scene.pass_s(0.1)
    [want] = scene.wants.values()
    assert 1 <= want.limit <= 32
