"""A supervisor's session with its database: turns, the lease, taking over runs of dead supervisors,
and levels of stopping. Pure, like the core.

The session stands between the loop and the core. The loop hands it events and carries out its
commands:

    loop ── take(event) ──▶ session ── take(event) ──▶ core     decides about runs and writes
    loop ◀── settle(now) ── session ◀── settle(now) ── core

The core decides about runs and workers. The session decides when a turn is due and what is in it,
when a lease is lost, when this supervisor registers again, and what keeps it from ending. What
follows a lost lease is in `Session._lose_lease`. Neither class reads a clock or waits; `now` is
monotonic seconds.

The simulation (tests/simulation) runs this class and the core on simulated time.
"""

import math
from collections.abc import Sequence

from pgqrs.model.turns import Taken, Want
from pgqrs.model.wording import count
from pgqrs.model.writes import Write
from supervisors.core.core import Core
from supervisors.core.events import (
    ClaimLost,
    Command,
    Commit,
    Exit,
    Exited,
    Gone,
    Held,
    Hinted,
    Hurry,
    Inside,
    Join,
    Launched,
    LeaseLost,
    LeaseTaken,
    Listen,
    LookAround,
    LookedAround,
    Measured,
    Note,
    NoWorkers,
    ParentGone,
    Recall,
    Recalled,
    Received,
    Registered,
    Renewed,
    Save,
    Saved,
    Send,
    SessionCommand,
    SessionEvent,
    Sever,
    Stop,
    Tick,
    TurnEnded,
    Unanswered,
    Unreachable,
    Watched,
)
from supervisors.core.outgoing import Outgoing
from supervisors.core.state import Function, Settings
from supervisors.core.states import STANDINGS, Standing, follow
from supervisors.core.stopping import Happened, Level, after

# The time between two checks for runs of dead supervisors and for runs that no longer belong to
# this one.
RECOVER_EVERY_S = 1.0
# Workers are killed this long before the lease ends.
FENCE_MARGIN_S = 1.0
# The time between two attempts to register again.
JOIN_EVERY_S = 1.0
# The longest wait for a write after the workers were killed.
UNANSWERED_S = 5.0
# A lock of another session is reported when it lasts longer than this.
LOCKED_TELL_S = 1.0
# The time for steps to end after the program that started this supervisor has died.
ORPHAN_GRACE_S = 2.0


# By far most events concern the core alone.
HANDED_ON = frozenset({Received, Launched, Exited, Measured, Recalled, Inside, Hinted})


class Session:
    def __init__(self, functions: Sequence[Function], settings: Settings) -> None:
        self.core = Core(functions, settings)
        self.exit: Exit | None = None
        # The highest level of stopping asked for so far.
        self.told = 0
        # Queue id to consumer id, while registered.
        self.consumers: dict[int, int] = {}
        # When the lease ends.
        self.until = math.inf
        self.standing = Standing.OUTSIDE
        self._settings = settings
        self._orders: list[SessionCommand] = []
        # The next turn, and the one under way.
        self._outgoing = Outgoing()
        self._wants: list[Want] = []
        self._committing: Commit | None = None
        # When the turn under way was ordered.
        self._asked_at = -math.inf
        # When the last turn ended.
        self._ended_at = -math.inf
        self._listens = True
        # Why the database is away, as turns and the watch see it. None while it answers.
        self._turn_away: str | None = None
        self._watch_away: str | None = None
        self._told_away = False
        self._told_locked = False
        # The number of looks in a row that found a dead supervisor's messages locked.
        self._looks_locked = 0
        # Whether a LookAround is under way.
        self._looking = False
        self._next_look = -math.inf
        self._next_join = -math.inf
        # The end.
        self._killing_since: float | None = None
        self._orphan_until: float | None = None

    # What the loop asks

    @property
    def away(self) -> str | None:
        """Why the database is away, or None while it answers."""
        return self._turn_away or self._watch_away

    @property
    def is_joined(self) -> bool:
        return self.standing is Standing.JOINED

    def next_timer(self) -> float:
        """Returns when `settle` is due at the latest, in monotonic seconds. Infinity means never."""
        times = [self._orphan_until, self.core.next_timer()]
        if self.standing is Standing.JOINED:
            times.append(self.until - FENCE_MARGIN_S)
        if not self._looking and self.standing is not Standing.JOINING:
            times.append(self._next_look if self.standing is Standing.JOINED else self._next_join)
        if self._committing is None:
            times += [self._due_at(), self._outgoing.next_again()]
        if self._killing_since is not None and self._turn_away is None:
            times.append(self._silent_from() + UNANSWERED_S)
        return min((t for t in times if t is not None), default=math.inf)

    # Events

    def take(self, event: SessionEvent, now: float) -> None:
        """Records an event. Several events may be taken before one call of `settle`, which returns
        the commands that follow from all of them.
        """
        if type(event) in HANDED_ON:
            self.core.take(event, now)  # type: ignore[arg-type]
            return
        match event:
            case TurnEnded():
                self._turn_ended(event, now)
            case Unreachable():
                self._turn_away = event.error
                self._tell_away()
            case Watched():
                self._watch_away = event.away
                self._tell_away()
            case Registered():
                self._stand(Standing.JOINED)
                self.consumers, self.until = event.consumers, event.until
                self._next_look = now + RECOVER_EVERY_S
                self.core.take(event, now)
            case Renewed():
                self.until = event.until
                self.core.take(event, now)
            case LeaseTaken():
                self._lose_lease(now)
            case LookedAround():
                self._looked_around(event, now)
            case Unanswered():
                if self._looking:
                    self._looking = False
                elif self.standing is Standing.JOINING:
                    self._stand(Standing.OUTSIDE)
            case Stop():
                self._stop(event.level, now)
            case ParentGone():
                if not self.told:
                    self._orphan_until = now + ORPHAN_GRACE_S
                self._stop(2, now)
            case NoWorkers():
                self._happened(Happened.NO_WORKERS, event.reason)
            case _:
                raise AssertionError(f"no event of a session: {event!r}")

    def settle(self, now: float) -> list[SessionCommand]:
        """Returns the commands that follow from all events since the last call, in the order in
        which the loop must carry them out.

        If a Recall is among them, its answer (`Recalled`) comes at once. No turn is assembled
        before this answer, so the loop then calls `settle` again.
        """
        if self.standing is Standing.JOINED and now >= self.until - FENCE_MARGIN_S:
            self._lose_lease(now)
        if self._orphan_until is not None and now >= self._orphan_until:
            self._orphan_until = None
            self._stop(3, now)
        if (timer := self.core.next_timer()) is not None and now >= timer:
            self.core.take(Tick(), now)
        if not self._relay(self.core.settle(now, self._claim_from()), now):
            self._mind_ending(now)
            self._mind_others(now)
            self._commit(now)
            if self._listens != self._outgoing.has_room:
                self._listens = self._outgoing.has_room
                self._orders.append(Listen(self._listens))
        orders, self._orders = self._orders, []
        return orders

    def _relay(self, commands: Sequence[Command], now: float) -> bool:
        """Keeps the commands of the core that concern turns, and hands the others on to the loop.
        Returns True if a Recall is among them.
        """
        recalls = False
        for command in commands:
            match command:
                case Save():
                    self._outgoing.add(command.write, now, command.urgent)
                case Send():
                    self._orders.append(command)
                case Hurry():
                    self._outgoing.hurried = True
                case Want():
                    self._wants.append(command)
                case Exit():
                    self._end(command)
                case _:
                    recalls = recalls or isinstance(command, Recall)
                    self._orders.append(command)
        return recalls

    # Turns

    def _commit(self, now: float) -> None:
        """Assembles the next turn when it is due. While a turn is under way, writes collect for the
        next one: group commit.
        """
        if self._committing is not None:
            return
        outgoing, again_at = self._outgoing, self._outgoing.next_again()
        due_at = self._due_at()
        if not (due_at is not None and now >= due_at) and not (
            again_at is not None and now >= again_at and (not outgoing or now >= self._gathered_at())
        ):
            return
        writes, again = outgoing.take(now)
        wants = [w for w in self._wants if w.consumer_id == self.consumers.get(w.queue_id)]
        self._wants.clear()
        if writes or wants or again:
            self._committing, self._asked_at = Commit(writes, wants, again), now
            self._orders.append(self._committing)

    def _due_at(self) -> float | None:
        """Returns when the next turn is due because of its writes and claims."""
        oldest = self._outgoing.oldest
        if oldest is None:
            return -math.inf if self._wants else None
        gathered_at = self._gathered_at()
        if self._outgoing.hurried or self._wants:
            return gathered_at
        return max(gathered_at, oldest + self.core.scheduling.commit_every_s)

    def _gathered_at(self) -> float:
        """Returns when the next turn has waited long enough for other writes. The results of the
        runs that the last turn claimed should be part of it.
        """
        if not self._settings.gather_s:
            return -math.inf
        return max(self._outgoing.oldest or -math.inf, self._ended_at) + self._settings.gather_s

    def _claim_from(self) -> float:
        """Returns from when claims may be ordered. A claim should be in the same turn as the writes
        that make room for it.
        """
        if not self._settings.gather_s:
            return 0.0
        return math.inf if self._committing is not None else self._gathered_at()

    def _turn_ended(self, event: TurnEnded, now: float) -> None:
        assert event.commit is self._committing, "the answer is to the turn that was asked for"
        self._committing, self._ended_at = None, now
        self._turn_away = None
        self._tell_away()
        self._put_off(event.turn.put_off, now)
        if event.turn.outcomes:
            refused = self._outgoing.drop_behind(event.turn.outcomes)
            self.core.take(Saved([*event.turn.outcomes, *refused]), now)
        if event.held is not None:
            self.core.take(Held(event.held), now)
            for want in event.commit.wants:
                self.core.take(ClaimLost(want.queue_id), now)
        for taken in event.turn.taken:
            self._taken(taken, now)

    def _taken(self, taken: Taken, now: float) -> None:
        """Hands the answer to a claim on to the core, unless the claim was ordered under a lease
        that is lost.
        """
        if taken.want.consumer_id == self.consumers.get(taken.want.queue_id):
            self.core.take(taken, now)

    def _put_off(self, writes: Sequence[Write], now: float) -> None:
        """Puts off these writes, because another session has locked their rows."""
        self._outgoing.put_off(writes, now)
        since = self._outgoing.locked_since
        if since is None:
            self._told_locked = False
        elif writes and not self._told_locked and now - since >= LOCKED_TELL_S:
            self._told_locked = True
            ids = sorted({w.claim.message_id for w in writes})
            text = (
                f"another session holds a lock on {count(len(ids), 'message')}, run or step: what was to "
                f"be written there waits, all else goes on (see pg_locks); the first is message {ids[0]}"
            )
            self._orders.append(Note(text, "warning", ids[0]))

    # The lease

    def _stand(self, standing: Standing) -> None:
        self.standing = follow(STANDINGS, self.standing, standing)

    def _lose_lease(self, now: float) -> None:
        """The lease is lost, so the runs of this supervisor may belong to another one. The runs
        must stop, and none of their writes is made. Then this process registers again.
        """
        if self.standing is not Standing.JOINED:
            return
        self._stand(Standing.OUTSIDE)
        self._next_join = now
        # Writes ordered before are dropped with the others.
        self._relay(self.core.settle(now), now)
        self._drop_unwritten()
        self.consumers = {}
        commit = self._committing
        self.core.take(LeaseLost(len(commit.writes) + len(commit.again) if commit else 0), now)
        # Workers are killed before anything that may wait.
        self._relay(self.core.settle(now), now)
        self._drop_unwritten()
        # A connection may be silent without being closed. A thread that waits for an answer on it
        # must not wait longer.
        self._orders.append(Sever(lease=True))

    def _drop_unwritten(self) -> None:
        self._outgoing.clear()
        self._wants.clear()

    # Others: dead supervisors, operators, our own lost lease

    def _mind_others(self, now: float) -> None:
        if self.exit is not None or self._looking:
            return
        if self.standing is Standing.OUTSIDE and now >= self._next_join:
            self._next_join = now + JOIN_EVERY_S
            self._stand(Standing.JOINING)
            self._orders.append(Join())
        elif self.standing is Standing.JOINED and now >= self._next_look:
            self._next_look = now + RECOVER_EVERY_S
            self._looking = True
            claims = [r.claim for r in self.core.runs.values() if not r.ending]
            self._orders.append(LookAround(claims, tuple(self.consumers.values())))

    def _looked_around(self, event: LookedAround, now: float) -> None:
        self._looking = False
        if self.standing is not Standing.JOINED:
            # The LookAround was ordered under a lease that is lost.
            return
        self.core.take(event, now)
        self._tell_locked(event.locked)
        if event.gone:
            self.core.take(Gone(list(event.gone)), now)
        if event.recovered:
            self._note(f"took back {count(event.recovered, 'message')} of a supervisor that died")
        if event.reclaimed:
            self._note(
                f"took back {count(event.reclaimed, 'message')} that clients of pgqrs 0.15 held too long"
            )
        if event.brought_back:
            text = (
                f"the clock went back: {count(event.brought_back, 'message')} "
                "that waited by the old time are due by the new one"
            )
            self._orders.append(Note(text, "warning"))
        if event.recovered or event.reclaimed or event.brought_back:
            self.core.take(Hinted(), now)

    def _tell_locked(self, locked: bool) -> None:
        """Reports once that another session has locked the messages of a dead supervisor, if two
        looks in a row have found them locked.
        """
        self._looks_locked = self._looks_locked + 1 if locked else 0
        if self._looks_locked == 2:
            text = (
                "a dead supervisor's messages are locked by another session (see pg_locks): they are "
                "taken back when it lets go"
            )
            self._orders.append(Note(text, "warning"))

    def _tell_away(self) -> None:
        """Reports once that the database is away, and once that it is back. Either a turn or the
        watch notices this. An idle supervisor sends no statement that could fail, but its watch
        does.
        """
        away = self.away
        if (away is not None) == self._told_away:
            return
        self._told_away = away is not None
        if away is None:
            self._note("the database is back")
        else:
            self._orders.append(Note(f"the database is away, trying again: {away}", "warning"))

    # Ending

    def _stop(self, level: int, now: float) -> None:
        if level > self.told:
            self.told = level
            self.core.take(Stop(level), now)

    def _mind_ending(self, now: float) -> None:
        """Lets the supervisor end although a write cannot be made, once its workers are killed."""
        if self.core.level is Level.KILLING:
            self._killing_since = now if self._killing_since is None else self._killing_since
            if self._turn_away is None and now - self._silent_from() >= UNANSWERED_S:
                self._give_up_silence()
        if self._turn_away is not None or self.standing is not Standing.JOINED:
            self._happened(Happened.AWAY)

    def _silent_from(self) -> float:
        """Returns since when a write has waited for its answer. Infinity: no answer is awaited."""
        if self._committing is not None:
            return self._asked_at
        if self._outgoing.locked_since is None:
            return math.inf
        assert self._killing_since is not None
        return max(self._outgoing.locked_since, self._killing_since)

    def _give_up_silence(self) -> None:
        if self._committing is not None:
            self._turn_away = (
                f"a transaction has had no answer for {UNANSWERED_S:g} "
                "s: somebody may hold a lock that it waits for"
            )
            self._orders.append(Sever(lease=False))
        else:
            self._turn_away = (
                f"the last results have waited {UNANSWERED_S:g} s to "
                "be written: somebody may hold a lock on their rows"
            )
        self._told_away = True
        self._orders.append(Note(self._turn_away, "warning"))

    def _happened(self, what: Happened, reason: str = "") -> None:
        then = after(self.core.level, what, reason)
        if isinstance(then, Exit):
            self._end(then)

    def _end(self, exit: Exit) -> None:
        if self.exit is None:
            self.exit = exit
            self._orders.append(exit)

    def _note(self, text: str) -> None:
        self._orders.append(Note(text))
