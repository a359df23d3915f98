"""The supervisor's session: turns, lease, joining and ending, without a database, a thread or a clock."""

import math
from typing import Any

import pytest

from pgqrs.model.turns import Taken, Turn
from pgqrs.model.writes import Claim, Claimed, Outcome
from supervisors import wire
from supervisors.core import events, session
from supervisors.core.session import Session
from supervisors.core.state import Function, Settings
from supervisors.core.states import STANDINGS, Standing
from supervisors.core.stopping import Level

FLOW = Function("flow", "workflow", False, "flow", 1, 11)
LEASE_S = 15.0


class Scene:
    """A session, the clock, and what it has ordered. `now` starts somewhere, as a monotonic clock does."""

    def __init__(self, **settings: Any) -> None:
        self.session = Session([FLOW], Settings(**{"workers": 1, "lanes": 4, **settings}))
        self.now = 1000.0
        self.out: list[Any] = []
        self.message = 0

    def tell(self, *told: events.SessionEvent) -> "Scene":
        for event in told:
            self.session.take(event, self.now)
        self.out = self.session.settle(self.now)
        return self

    def after(self, seconds: float) -> "Scene":
        self.now += seconds
        return self.tell()

    def joined(self, until_s: float = LEASE_S) -> "Scene":
        return self.tell(events.Registered({1: 101}, self.now + until_s))

    def booted(self) -> "Scene":
        """Its worker is ready; the claim that follows is under way."""
        return self.joined().tell(events.Launched(1, 77), events.Received(1, wire.Ready(77)))

    def running(self, *messages: int) -> "Scene":
        """These are begun in its worker. Nothing is written of them yet."""
        self.booted().ended(*messages)
        return self.tell(*(events.Received(1, wire.Started(n, 1)) for n in messages))

    def ended(self, *messages: int, put_off: bool = False, held: list[Claim] | None = None) -> "Scene":
        """The turn under way ends. Its writes are applied, or put off, and its claim takes these messages."""
        commit = self.commit
        assert commit is not None
        outcomes = [] if put_off else [Outcome(w, True) for w in [*commit.writes, *commit.again]]
        late = [*commit.writes, *commit.again] if put_off else []
        taken = [Taken(w, [claimed(n) for n in messages]) for w in commit.wants] if held is None else []
        return self.tell(events.TurnEnded(commit, Turn(outcomes, taken, late), held))

    @property
    def commit(self) -> events.Commit | None:
        """The turn under way."""
        return self.session._committing

    def ordered(self, kind: type) -> list[Any]:
        return [c for c in self.out if isinstance(c, kind)]


def claimed(n: int) -> Claimed:
    return Claimed(Claim(n, 101, 1), b'{"input": null}', 1)


def done(n: int) -> events.Received:
    return events.Received(1, wire.Finished(n, 1, b"1"))


# Turns


def test_nothing_is_committed_while_a_turn_is_under_way_and_all_of_it_afterwards():
    scene = Scene().running(1, 2)
    first = scene.after(1.0).commit
    assert first is not None
    assert [w.claim.message_id for w in first.writes] == [1, 2]
    scene.tell(done(1), done(2)).after(10.0)
    assert scene.commit is first
    scene.ended()
    assert scene.commit is not first
    assert scene.commit is not None
    assert [w.claim.message_id for w in scene.commit.writes] == [1, 2]


def test_what_nobody_waits_for_waits_for_company_and_the_timer_says_for_how_long():
    scene = Scene().running(1)
    every_s = scene.session.core.scheduling.commit_every_s
    assert scene.commit is None
    assert scene.session.next_timer() <= scene.now + every_s
    scene.after(every_s)
    assert scene.commit is not None


def test_an_idle_worker_hurries_the_turn():
    scene = Scene().running(1)
    scene.tell(done(1), events.Received(1, wire.Idle()))
    assert scene.commit is not None


def test_where_a_commit_is_dear_even_a_hurried_turn_waits_for_company():
    scene = Scene(gather_s=0.5).running(1)
    scene.tell(done(1), events.Received(1, wire.Idle()))
    assert scene.commit is None
    assert scene.session.next_timer() <= scene.now + 0.5
    scene.after(0.5)
    assert scene.commit is not None


def test_where_a_commit_is_dear_a_claim_waits_for_all_the_room_that_there_will_be():
    scene = Scene(gather_s=0.5).running(1, 2, 3, 4).after(0.5)
    scene.tell(done(1)).after(0.1)
    scene.tell(done(2)).ended()
    scene.after(0.1).tell(done(3), done(4))
    assert scene.commit is None
    scene.after(0.5)
    assert scene.commit is not None
    assert (len(scene.commit.writes), [w.limit for w in scene.commit.wants]) == (4, [4])


def test_a_claim_of_a_lost_lease_is_not_made_and_its_answer_goes_nowhere():
    scene = Scene().booted()
    commit = scene.commit
    assert commit is not None
    scene.tell(events.LeaseTaken())
    scene.tell(events.TurnEnded(commit, Turn([], [Taken(commit.wants[0], [claimed(1)])])))
    assert scene.session.core.runs == {}


def test_an_answer_to_another_turn_is_refused():
    scene = Scene().booted()
    with pytest.raises(AssertionError):
        scene.tell(events.TurnEnded(events.Commit((), ()), Turn([], [])))


def test_what_a_claim_took_unseen_goes_back():
    scene = Scene().booted()
    scene.ended(held=[Claim(9, 101, 1)]).after(1.0)
    assert scene.commit is not None
    assert [w.claim.message_id for w in scene.commit.writes] == [9]


def test_a_lock_of_another_session_is_told_once_when_it_lasts():
    scene = Scene().running(1).after(1.0)
    scene.ended(put_off=True)
    assert scene.ordered(events.Note) == []
    notes = []
    for _ in range(20):
        scene.after(0.5)
        if scene.commit is not None:
            notes += scene.ended(put_off=True).ordered(events.Note)
    assert len(notes) == 1
    assert "message 1" in notes[0].text


# The lease


def test_workers_are_killed_before_the_lease_ends_and_nothing_more_is_written():
    scene = Scene().running(1)
    assert scene.session.next_timer() <= scene.now + LEASE_S - session.FENCE_MARGIN_S
    scene.tell(done(1)).after(LEASE_S - session.FENCE_MARGIN_S)
    kinds = [type(c) for c in scene.out]
    assert kinds.index(events.Kill) < kinds.index(events.Sever) < kinds.index(events.Join)
    assert scene.session.standing is Standing.JOINING
    assert scene.commit is None or not scene.commit.writes


def test_they_are_killed_in_time_although_a_silent_database_answers_nothing():
    scene = Scene().booted()
    until = scene.session.until
    scene.after(session.RECOVER_EVERY_S)
    assert (scene.commit is not None, len(scene.ordered(events.LookAround))) == (True, 1)
    assert scene.session.next_timer() <= until - session.FENCE_MARGIN_S


def test_a_renewal_puts_that_off():
    scene = Scene().running(1)
    scene.now += LEASE_S - session.FENCE_MARGIN_S - 0.1
    scene.tell(events.Renewed(scene.now + LEASE_S)).after(1.0)
    assert scene.session.is_joined
    assert scene.ordered(events.Kill) == []


def test_a_lost_lease_is_lost_once():
    scene = Scene().running(1).tell(events.LeaseTaken())
    assert len(scene.ordered(events.Join)) == 1
    scene.tell(events.LeaseTaken())
    assert scene.ordered(events.Join) == scene.ordered(events.Sever) == []


def test_it_joins_again_and_again_until_the_database_answers():
    scene = Scene().running(1).tell(events.LeaseTaken())
    for _ in range(3):
        scene.tell(events.Unanswered())
        assert scene.session.standing is Standing.OUTSIDE
        scene.after(session.JOIN_EVERY_S)
        assert len(scene.ordered(events.Join)) == 1
    scene.joined()
    assert scene.session.is_joined
    assert scene.session.consumers == {1: 101}


def test_a_look_around_under_way_is_answered_before_it_joins_again():
    scene = Scene().booted().after(session.RECOVER_EVERY_S)
    assert len(scene.ordered(events.LookAround)) == 1
    scene.tell(events.LeaseTaken())
    assert scene.ordered(events.Join) == []
    scene.tell(events.Unanswered())
    assert len(scene.ordered(events.Join)) == 1
    assert scene.session.standing is Standing.JOINING


def test_a_standing_becomes_only_what_its_table_says():
    for before in Standing:
        for then in Standing:
            scene = Scene()
            scene.session.standing = before
            if then is before or then in STANDINGS[before]:
                scene.session._stand(then)
            else:
                with pytest.raises(AssertionError):
                    scene.session._stand(then)


# Others


def test_it_looks_around_every_second_and_asks_for_what_it_holds():
    scene = Scene().running(1)
    scene.after(session.RECOVER_EVERY_S)
    [look] = scene.ordered(events.LookAround)
    assert (look.claims, look.consumers) == ([Claim(1, 101, 1)], (101,))
    scene.after(5.0)
    assert scene.ordered(events.LookAround) == []
    scene.tell(events.LookedAround([]))
    assert len(scene.ordered(events.LookAround)) == 1


def test_what_is_gone_is_killed_and_what_was_taken_back_is_told():
    scene = Scene().running(1).after(session.RECOVER_EVERY_S)
    scene.tell(events.LookedAround([Claim(1, 101, 1)], recovered=2, reclaimed=3, brought_back=4))
    assert [c.worker for c in scene.ordered(events.Kill)] == [1]
    texts = " ".join(n.text for n in scene.ordered(events.Note))
    for words in (
        "2 messages of a supervisor that died",
        "3 messages that clients",
        "4 messages that waited",
    ):
        assert words in texts


@pytest.mark.parametrize("how", ["turn", "watch"])
def test_a_database_that_is_away_is_told_once_and_so_is_its_return(how: str):
    scene = Scene().booted()
    away = events.Unreachable("no route") if how == "turn" else events.Watched("no route")
    assert [n.text for n in scene.tell(away, away).ordered(events.Note)] == [
        "the database is away, trying again: no route"
    ]
    assert scene.session.away == "no route"
    back = scene.ended() if how == "turn" else scene.tell(events.Watched(None))
    assert [n.text for n in back.ordered(events.Note)] == ["the database is back"]


def test_a_lock_on_a_dead_supervisors_messages_is_told_once_when_it_lasts():
    scene = Scene().booted()
    told = []
    for locked in (True, False, True, True, True, False, True, True):
        scene.tell(events.LookedAround([], locked=locked))
        told.append([n.level for n in scene.ordered(events.Note)])
    assert told == [[], [], [], ["warning"], [], [], [], ["warning"]]


# Ending


def test_levels_of_stopping_are_never_taken_back():
    scene = Scene().running(1).tell(events.Stop(2))
    assert scene.session.core.level is Level.STOPPING
    scene.tell(events.Stop(1))
    assert (scene.session.told, scene.session.core.level) == (2, Level.STOPPING)


def test_when_its_program_dies_steps_have_a_moment_to_end():
    scene = Scene().running(1).tell(events.ParentGone())
    assert scene.session.core.level is Level.STOPPING
    assert scene.session.next_timer() <= scene.now + session.ORPHAN_GRACE_S
    scene.after(session.ORPHAN_GRACE_S)
    assert scene.session.core.level is Level.KILLING


def test_a_supervisor_that_kills_does_not_wait_for_a_database_that_is_away():
    scene = Scene().running(1).after(1.0)
    scene.tell(events.Unreachable("gone"), events.Stop(3))
    [end] = scene.ordered(events.Exit)
    assert end.code == 3
    assert scene.session.exit is end


@pytest.mark.parametrize("put_off", [False, True], ids=["no answer", "a lock"])
def test_nor_for_one_that_says_nothing(put_off: bool):
    scene = Scene().running(1).after(1.0)
    scene.tell(events.Stop(3))
    if put_off:
        scene.ended(put_off=True)
    warnings, severed = [], []
    for _ in range(100):
        if scene.session.exit is not None:
            break
        scene.now = scene.session.next_timer()
        assert scene.now < 1000.0 + 60.0, "the timer says when it gives up"
        scene.tell()
        warnings += [n.text for n in scene.ordered(events.Note) if "somebody may hold a lock" in n.text]
        severed += scene.ordered(events.Sever)
        if put_off and scene.commit is not None:
            scene.ended(put_off=True)
    assert scene.session.exit is not None
    assert scene.session.exit.code == 3
    assert (len(warnings), severed) == (1, [] if put_off else [events.Sever(lease=False)])
    assert scene.now < 1000.0 + 1.0 + 2 * session.UNANSWERED_S


def test_nor_for_the_answer_to_what_it_wrote_under_a_lost_lease():
    scene = Scene().running(1).after(1.0)
    assert scene.commit is not None
    assert scene.commit.writes
    scene.tell(events.LeaseTaken())
    assert scene.session.exit is None
    [end] = scene.tell(events.Stop(3)).ordered(events.Exit)
    assert end.code == 3


def test_no_workers_is_the_end_with_its_reason():
    scene = Scene().booted().tell(events.NoWorkers("no such module"))
    assert scene.ordered(events.Exit) == [events.Exit(1, "no such module")]


def test_a_session_that_has_nothing_to_do_wants_no_timer_but_its_own_looks():
    scene = Scene()
    assert scene.session.next_timer() == -math.inf, "it is to join"
    scene.booted().ended()
    assert scene.session.next_timer() > scene.now


# Reading less


def test_workers_are_not_read_while_too_much_waits_to_be_written(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("supervisors.core.outgoing.WRITES_MAX", 2)
    scene = Scene(lanes=10).running(1, 2, 3)
    assert scene.ordered(events.Listen) == [events.Listen(False)]
    scene.after(1.0)
    assert scene.ordered(events.Listen) == [events.Listen(True)], "they are in the turn now"
