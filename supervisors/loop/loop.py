"""The supervisor process: pipes, signals, the database and the clock, around the core that decides.

Every turn reads what is ready, lets the core say what follows, and hands one transaction to the database thread; what
arrives meanwhile is the next one. Nothing here waits for anything but the selector.
"""

import errno
import gc
import math
import os
import selectors
import signal
import socket
import termios
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from queue import Empty, SimpleQueue
from typing import Any

from msgspec import Struct

from pgqrs import errors
from pgqrs.config import Config
from pgqrs.model.wording import count
from pgqrs.model.writes import Claim, Write
from pgqrs.program import targets
from pgqrs.store import administering, open_store
from pgqrs.store.store import MessageStore
from pgqrs.store.turning import Wanted
from supervisors.births.launch import (
    Child,
    Described,
    ForkFailed,
    Loaded,
    LoadFailed,
    Restarted,
    become_subreaper,
)
from supervisors.births.launchers import make_launcher
from supervisors.core import core, events, state
from supervisors.core.stopping import Happened, Level, after
from supervisors.health.health import Health
from supervisors.health.listeners import listeners
from supervisors.loop.committing import Answer, Aside, Away, Broken, Done, Job, Lease, Turns, sever
from supervisors.loop.outgoing import Outgoing
from supervisors.loop.pipes import Pipes
from supervisors.loop.view import Options, Report, State, View, worker_states
from supervisors.loop.watching import watch
from supervisors.machine.identity import cpu_seconds, end_of, is_gone, own_identity, resident_bytes
from supervisors.machine.quota import cores
from supervisors.worker.board import OnBoard

ATTEMPT_S = 3.0
S3_COMMIT_HIDE_S = 0.25  # a commit is a PUT, of some 60 to 100 ms
S3_GATHER_S = 0.015  # which even what somebody waits for therefore waits for company: a batch of tiny steps then is one PUT
RECOVER_EVERY_S = 1.0
SELF_FENCE_MARGIN_S = 1.0
JOIN_EVERY_S = 1.0  # while the database does not let us
REFRESH_S = 0.25
SIGN_OFF_S = 5.0  # for the database to hear it
UNANSWERED_S = (
    5.0  # a turn that waits for so long, as behind somebody's lock, keeps no supervisor from ending
)
EXIT_FAILED = 1  # where runs failed, if that was asked for
CLOCK_BACK_S = 1.0  # a smaller step is the clock's own correction
LOCKED_TELL_S = 1.0  # a lock of another session that lasts so long is worth a line
# Without a turn of the loop, or with one transaction under way, for so long, the lease is no longer renewed: somebody else takes over
# when it has run out. A turn of the loop takes milliseconds; a transaction waits 3 s for a silent server, and may have to be repeated.
LOOP_STANDS_S = 10.0
TURN_STANDS_S = 30.0
ORPHAN_GRACE_S = 2.0  # for steps to end, after the program that this supervisor is for has died


class Loop:
    def __init__(self, target: targets.Target, config: Config, options: Options, view: View) -> None:
        self._target = target
        # A database that is away is asked again and again here, so one attempt need not be patient.
        self._config = Config.from_dict(config.to_dict() | {"connection_timeout_seconds": ATTEMPT_S})
        self._options = options
        self._last_turn_at = 0.0
        self._gather_s = S3_GATHER_S if config.backend == "s3" else 0.0
        self._view = view
        self._selector = selectors.DefaultSelector()
        self._pipes = Pipes(self._selector, self._handle, self._show)
        self._out = Outgoing()
        self._wants: list[events.Want] = []
        self._recalls = False  # a board was asked, and its answer is to be settled
        self._exit: events.Exit | None = None
        self._in_flight = 0  # writes of the turn under way
        self._signals = 0
        self._stays = False  # when its terminal is closed
        self._suspends = False  # its terminal asked for that
        self._starting = False
        self._watched: int | None = None
        self._told_locked = False
        self._killing_since: float | None = None
        self._turned_at = time.monotonic()
        self._clock_ahead_s = time.time() - time.monotonic()  # of the machine's time since its start
        self._away: str | None = None
        self._told_away = False
        self._backlog: int | None = None
        self._next_look = 0.0
        self._next_refresh = 0.0
        self._next_recover = 0.0
        self._joined = True  # False between a lease that was lost and the next one
        self._next_join = 0.0
        self._stop_now_at: float | None = None
        self._supervisor_id: int | None = None
        self._parent_end: int | None = None

    def run(self) -> int:
        """Until told to stop or, with `burst`, until there is nothing left. The exit code. Raises PgqrsError for what
        keeps it from starting."""
        with ExitStack() as stack:
            wake_read, wake_write = socket.socketpair()
            for s in (wake_read, wake_write):
                s.setblocking(False)
                stack.callback(s.close)
            self._wake = lambda: _poke(wake_write)
            self._handle_signals(wake_write, stack)
            self._listeners = listeners(self._options.http, time.monotonic)
            for listener in self._listeners:
                stack.callback(listener.close)
            if self._options.subreaper:
                become_subreaper()
            self._launcher = make_launcher(
                self._target, self._options.start_method, self._config.max_payload_size_bytes
            )
            stack.callback(self._launcher.close)
            self._starting = True  # which may take long, or for ever: a signal ends it
            loaded = self._launcher.load()
            self._store = stack.enter_context(_closing(open_store(self._config, steady_plans=True)))
            self._lease_store = stack.enter_context(_closing(open_store(self._config, steady_plans=True)))
            functions = self._prepare(loaded.functions)
            self._watch = watch(self._config)
            stack.callback(self._watch.close)
            if (fd := self._watch.fileno()) is not None:
                self._watched = fd
                self._register_fd(fd, self._look_for_hints)
            self._register_fd(wake_read, lambda: _drain(wake_read))
            self._register_fd(self._launcher.fileno(), self._read_launcher)
            if self._options.parent_fd is not None:
                self._register_fd(self._options.parent_fd, self._hear_parent)
            if self._options.parent_pid is not None:
                self._parent_end = end_of(self._options.parent_pid)
                self._register_fd(self._parent_end, self._parent_is_gone)
            self._turns = Turns(self._store, self._wake, time.monotonic)
            self._core = core.Core(functions, self._settings())
            self._aside = Aside(self._wake)
            joined = self._join()
            self._starting = False
            self._joined_as(joined)
            stack.callback(self._sign_off)
            stack.callback(
                lambda: self._turns.close(5.0 if self._gone() is None else 0.1)
            )  # first: what a claim under way takes must be signed off too
            stack.callback(self._pipes.close)
            self._report(loaded, functions)
            for caution in (*self._store.cautions(), self._watch.caution()):
                if caution is not None:
                    self._view.note(events.Note(caution, "warning"))
            self._handle(events.Registered(self._consumers, self._lease.until))
            self._settle()
            self._say_health(time.monotonic())
            if self._options.ready_fd is not None:
                os.write(self._options.ready_fd, b"1")
                os.close(self._options.ready_fd)
            _rest_collector()
            self._handle_suspending(stack)
            self._forever()
            assert self._exit is not None
            if self._options.burst and not self._exit.code:
                self._say_what_waits()
        code, reason = self._exit.code, self._exit.reason
        if self._options.fail and not code and self._core.failed:
            code, reason = EXIT_FAILED, f"{reason}; {self._core.failed:,} failed, and --fail was given"
        self._view.ended(code, reason, self._state())
        return code

    def _say_what_waits(self) -> None:
        # Aside, as all that is asked: a database that says nothing must not keep us from ending.
        told: SimpleQueue[int] = SimpleQueue()
        self._aside.ask(lambda: told.put(self._lease_store.later(self._consumers)), lambda _: None)
        with suppress(Empty):
            if count := told.get(timeout=SIGN_OFF_S):
                text = f"{count:,} wait for their time, for a retry, a delay or the end of a pause: supervise again then"
                self._view.note(events.Note(text))

    # Starting

    def _settings(self) -> state.Settings:
        return state.Settings(
            workers=self._options.workers or cores(),
            lanes=self._options.lanes,
            read_ct_max=self._config.max_read_ct,
            drain_timeout_s=self._options.drain_timeout_s,
            burst=self._options.burst,
            max_runs_per_worker=self._options.max_runs_per_worker,
            max_rss_bytes=self._options.max_rss_bytes,
            commit_hide_s=S3_COMMIT_HIDE_S if self._config.backend == "s3" else state.COMMIT_HIDE_S,
            database=self._store.identity(),
        )

    def _prepare(self, described: Sequence[Described]) -> list[state.Function]:
        """Everything that the functions need in the database. On SQLite this may be the first write."""
        if self._store.database.dialect == "sqlite":
            self._store.install()
        self._store.verify()
        self._store.refuse_incapable()
        self._store.bring_back()
        functions = []
        for d in described:
            workflow_id = None
            if d.kind == "workflow":
                workflow = self._store.ensure_workflow(d.name, d.queue)
                queue_id, workflow_id = workflow.queue_id, workflow.id
            else:
                queue_id = self._store.ensure_queue(d.queue)
            functions.append(
                state.Function(d.name, d.kind, d.is_async, d.queue, queue_id, workflow_id, d.timeout_s)
            )
        return functions

    def _join(self) -> "Joined":
        """A new supervisor, also after a lost lease. Talks to the database, and touches nothing else."""
        queues = {f.function.queue: queue_id for queue_id, f in self._core.queues.items()}
        if self._supervisor_id is not None:
            self._make_sure_of(queues)
            # What we were is dead, and so is all that ran for it: there is no need to wait until its lease is over.
            self._lease_store.expire_lease(self._supervisor_id)
        recovered = self._take_back()
        began = time.monotonic()
        supervisor_id, consumers = self._lease_store.register_supervisor(
            own_identity(), queues, self._options.lease_s
        )
        return Joined(supervisor_id, {queues[name]: c for name, c in consumers.items()}, recovered, began)

    def _make_sure_of(self, queues: dict[str, int]) -> None:
        """Raises SchemaError where this is another database by now than the one that the supervisor started with."""
        for name, queue_id in queues.items():
            try:
                same = self._lease_store.find_queue(name) == queue_id
            except errors.QueueNotFoundError:
                same = False
            if not same:
                raise errors.SchemaError(
                    f"the database was replaced by another: queue {name!r} is not the one in it that this supervisor knew; "
                    "start the supervisor again"
                )

    def _take_back(self) -> int:
        """What supervisors held whose lease is over, and at once what a dead one of this host held: how many messages."""
        neighbours, is_over = self._lease_store.watched(own_identity())
        for supervisor_id, pid, pid_started in neighbours:
            if supervisor_id != self._supervisor_id and is_gone(pid, pid_started):
                self._lease_store.expire_lease(supervisor_id)
                is_over = True
        return self._lease_store.recover(self._config.max_read_ct) if is_over else 0

    def _joined_as(self, joined: "Joined") -> None:
        self._supervisor_id, self._consumers, self._recovered = joined.id, joined.consumers, joined.recovered
        self._turns.consumers = tuple(joined.consumers.values())
        self._lease = Lease(
            self._lease_store,
            joined.id,
            self._options.lease_s,
            self._wake,
            time.monotonic,
            joined.began,
            self._is_at_work,
        )
        self._told_until = self._lease.until
        self._joined = True

    def _is_at_work(self) -> bool:
        """Asked by the lease's thread."""
        now = time.monotonic()
        if now - self._turned_at > LOOP_STANDS_S:
            return False
        return not self._turns.busy or now - self._turns.asked_at <= TURN_STANDS_S

    def _report(self, loaded: Loaded, functions: Sequence[state.Function]) -> None:
        self._view.started(
            Report(
                target=str(self._target),
                start_method=self._launcher.method,
                workers=(self._options.workers or cores()) if any(not f.is_async for f in functions) else 0,
                async_workers=int(any(f.is_async for f in functions)),
                functions=loaded.functions,
                threads=loaded.threads,
                thread_makers=loaded.thread_makers,
                import_s=loaded.seconds,
                lease_s=self._options.lease_s,
                payload_bytes_max=self._config.max_payload_size_bytes,
                dsn=self._config.dsn,
                recovered=self._recovered,
            )
        )
        for sentence in (*loaded.shared, *loaded.unknown):
            self._view.note(events.Note(sentence, "warning"))

    def _handle_signals(self, wake: socket.socket, stack: ExitStack) -> None:
        def on_signal(number: int, frame: object) -> None:
            if number == signal.SIGHUP:
                self._hung_up()
                _leave_terminal()
            else:
                self._signals += 1
            if self._starting:
                raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(0)

        old_fd = signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        stack.callback(signal.set_wakeup_fd, old_fd)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                self._stays = True  # as nohup wishes
                continue
            stack.callback(signal.signal, number, signal.signal(number, on_signal))

    def _handle_suspending(self, stack: ExitStack) -> None:
        """Of a terminal's Ctrl-Z, unless whoever started this process ignores that."""
        if signal.getsignal(signal.SIGTSTP) == signal.SIG_DFL:
            stack.callback(signal.signal, signal.SIGTSTP, signal.signal(signal.SIGTSTP, self._on_suspending))

    def _on_suspending(self, number: int, frame: object) -> None:
        self._suspends = True

    def _suspend(self) -> None:
        """Stops the workers and then this process, until somebody continues it. By then its lease may be over, and what its workers
        have may be another supervisor's: they go on only after the loop has looked at that."""
        self._suspends = False
        text = "stopped by Ctrl-Z, and its workers with it; after the lease others take over what runs"
        self._view.note(events.Note(text, "warning"))
        self._view.suspended()
        self._pipes.stand_still(True)
        began = time.monotonic()
        ours = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, ours)
        self._view.resumed()
        self._view.note(events.Note(f"goes on after {time.monotonic() - began:.1f} s"))
        self._look_around(time.monotonic())
        self._settle()
        self._pipes.stand_still(False)

    def _hung_up(self) -> None:
        """One and the same end may be told several times: by the shell, by the kernel, by what is written there."""
        self._signals = max(self._signals, 1)

    # The turn

    def _forever(self) -> None:
        stopping = 0
        while self._exit is None:
            if self._suspends:
                self._suspend()
            now = self._turned_at = time.monotonic()
            if self._view.deserted and not self._stays:
                self._hung_up()
            if self._signals > stopping:
                if not stopping:
                    for listener in self._listeners:
                        listener.stopping()
                stopping = self._signals
                self._handle(events.Stop(min(stopping, 3)))
                self._settle()
            if self._core.level is Level.KILLING:
                self._killing_since = self._killing_since or now
                self._give_up_silence(now)
            if (self._away is not None or not self._joined) and self._ends_with(Happened.AWAY):
                break
            self._pipes.flush()
            for key, _ in self._selector.select(self._timeout(now)):
                key.data()
            self._read_database()
            self._look_around(time.monotonic())
            self._settle()
            self._commit(time.monotonic())

    def _give_up_silence(self, now: float) -> None:
        """What cannot be written for so long keeps no supervisor from ending."""
        if self._away is not None:
            return
        locked_since = self._out.locked_since
        if self._turns.busy and now - self._turns.asked_at > UNANSWERED_S:
            self._away = f"a transaction has had no answer for {UNANSWERED_S:g} s: somebody may hold a lock that it waits for"
            self._told_away = True
            sever(self._store)
        elif locked_since is not None and now - max(locked_since, self._killing_since or now) > UNANSWERED_S:
            self._away = f"the last results have waited {UNANSWERED_S:g} s to be written: somebody may hold a lock on their rows"
        else:
            return
        self._view.note(events.Note(self._away, "warning"))

    def _timeout(self, now: float) -> float:
        times = [self._next_refresh, self._next_recover]
        if (timer := self._core.next_timer()) is not None:
            times.append(timer)
        if self._watch.interval_s is not None:
            times.append(self._next_look)
        if (rested := self._pipes.next_timer()) is not None:
            times.append(rested)
        if not self._turns.busy:
            if self._out.oldest is not None:
                every = self._out.oldest + self._core.scheduling.commit_every_s
                times.append(self._gathered_at() if self._out.hurried or self._wants else every)
            if (again_at := self._out.next_again()) is not None:
                times.append(again_at)
        return max(0.0, min(times) - now)

    def _handle(self, event: events.Event) -> None:
        self._core.take(event, time.monotonic())

    def _settle(self) -> None:
        self._recalls = True
        while self._recalls:  # what was asked of a board has its answer at once
            self._recalls = False
            for command in self._core.settle(time.monotonic(), self._claim_from()):
                self._do(command)

    def _do(self, command: events.Command) -> None:
        match command:
            case events.Send():
                self._pipes.send(command.worker, command.frame)
            case events.Save():
                self._out.add(command.write, time.monotonic(), command.urgent)
            case events.Hurry():
                self._out.hurried = True
            case events.Want():
                self._wants.append(command)
            case events.Launch():
                self._launcher.launch(command.worker, command.kind)
            case events.Recall():
                self._recalls = True
                self._pipes.recall(command.worker)
            case events.Dump():
                self._pipes.dump(command.worker)
            case events.Kill():
                self._pipes.kill(command.worker, command.force)
            case events.Note():
                self._view.note(command)
            case events.Exit():
                self._exit = command

    def _look_around(self, now: float) -> None:
        if self._watch.interval_s is not None and now >= self._next_look:
            self._look_for_hints()
            self._next_look = now + (self._watch.interval_s or 0.0)
        if not self._joined:
            if now >= self._next_join and not self._aside.busy:
                self._next_join = now + JOIN_EVERY_S
                self._aside.ask(self._join, self._join_anew)
        elif self._lease.lost or now > self._lease.until - SELF_FENCE_MARGIN_S:
            self._lost()
        elif self._lease.until != self._told_until:
            self._told_until = self._lease.until
            self._handle(events.Renewed(self._told_until))
        self._tell_away()
        self._pipes.go_on(now)
        self._pipes.listen(self._out.has_room)
        timer = self._core.next_timer()
        if timer is not None and now >= timer:
            self._handle(events.Tick())
        if self._stop_now_at is not None and now >= self._stop_now_at:
            self._signals = max(self._signals, 3)
        if now >= self._next_recover:
            self._next_recover = now + RECOVER_EVERY_S
            self._recover_others()
        if now >= self._next_refresh:
            self._next_refresh = now + REFRESH_S
            self._pipes.look_at_boards(self._is_known, self._is_there)
            self._weigh()
            self._launcher.look()
            if self._options.subreaper:
                self._launcher.reap_strangers(self._pipes.pids())
            self._view.state(self._state())
            self._say_health(now)

    def _tell_away(self) -> None:
        """Once, by whichever way it was found out: an idle supervisor asks nothing that it would miss an answer of, but its watch
        does."""
        away = self._gone()
        if (away is not None) == self._told_away:
            return
        self._told_away = away is not None
        if away is None:
            self._view.note(events.Note("the database is back"))
        else:
            self._view.note(events.Note(f"the database is away, trying again: {away}", "warning"))

    def _gone(self) -> str | None:
        return self._away or self._watch.away

    def _say_health(self, now: float) -> None:
        away = self._gone()
        why_not = "it is stopping" if self._signals else away and f"the database is away: {away}"
        counts = {
            "finished": self._core.finished,
            "failed": self._core.failed,
            "crashes": self._core.crashes,
            "held": len(self._core.runs),
            "workers": sum(w.ready for w in self._core.workers.values()),
        }
        for listener in self._listeners:
            listener.tell(Health(now, why_not is None, why_not, counts))

    # The database

    def _commit(self, now: float) -> None:
        if self._turns.busy:
            return
        out, again_at = self._out, self._out.next_again()
        due = self._wants or (again_at is not None and now >= again_at)
        if out:
            assert out.oldest is not None
            if now < self._gathered_at():
                return
            due = due or out.hurried or now >= out.oldest + self._core.scheduling.commit_every_s
        if not due:
            return
        writes, again = out.take(now)
        wanted = [
            Wanted(
                w.queue_id,
                w.consumer_id,
                w.limit,
                self._config.max_read_ct,
                w.after,
                w.lapsed,
                w.polls,
                w.first,
            )
            for w in self._wants
            if w.consumer_id == self._consumers.get(w.queue_id)
        ]
        self._wants.clear()
        if writes or wanted or again:
            self._in_flight = len(writes) + len(again)
            self._turns.submit(Job(writes, wanted, again))

    def _gathered_at(self) -> float:
        """When the next turn has waited long enough for company: what the last one has claimed should be part of it."""
        return max(self._out.oldest or 0.0, self._last_turn_at) + self._gather_s

    def _claim_from(self) -> float:
        """When there may be a claim in the next turn, which is to be the same as its writes'."""
        if not self._gather_s:
            return 0.0
        return math.inf if self._turns.busy else self._gathered_at()

    def _read_database(self) -> None:
        while not self._turns.news.empty():
            news = self._turns.news.get()
            match news:
                case Done():
                    self._turns.busy = False
                    self._last_turn_at = time.monotonic()
                    self._in_flight = 0
                    self._took_place(news)
                case Away():
                    self._away = news.error
                    self._tell_away()
                case Broken():
                    raise news.error

        while not self._aside.news.empty():
            match self._aside.news.get():
                case Answer(then, found):
                    self._aside.busy = False
                    then(found)
                case Broken(error):
                    raise error

    def _took_place(self, done: Done) -> None:
        self._away = None
        self._tell_away()
        self._say_locked(done.turn.put_off)
        if done.turn.outcomes:
            refused = self._out.drop_behind(done.turn.outcomes)
            self._handle(events.Saved([*done.turn.outcomes, *refused]))
        if done.held is not None:
            self._handle(events.Held(done.held))
            for w in done.job.wanted:
                self._handle(events.ClaimLost(w.queue_id))
        for taken in done.turn.taken:
            if taken.wanted.consumer_id == self._consumers.get(taken.wanted.queue_id):
                self._handle(
                    events.Taken(
                        taken.wanted.queue_id, taken.messages, taken.wanted.limit, taken.after, taken.ready
                    )
                )

    def _say_locked(self, put_off: Sequence[Write]) -> None:
        now = time.monotonic()
        self._out.put_off(put_off, now)
        since = self._out.locked_since
        if since is None:
            self._told_locked = False
        elif put_off and not self._told_locked and now - since >= LOCKED_TELL_S:
            self._told_locked = True
            ids = sorted({w.claim.message_id for w in put_off})
            text = (
                f"another session holds a lock on {count(len(ids), 'message')}, run or step: what was to be written there waits, all else goes "
                f"on (see pg_locks); the first is message {ids[0]}"
            )
            self._view.note(events.Note(text, "warning", ids[0]))

    def _recover_others(self) -> None:
        """Takes back what dead supervisors held, and asks whether what runs here is still ours: an operator may have ended it, or
        given it to somebody else. Reads that find nothing, nearly always."""
        self._pipes.look_around()
        if self._aside.busy or not self._joined:
            return
        claims = [r.claim for r in self._core.runs.values() if not r.ending]
        consumers = tuple(self._consumers.values())
        went_back = self._clock_went_back()

        def look() -> Seen:
            self._watch.mend()
            brought_back = self._lease_store.bring_back() if went_back else 0
            held = set(self._lease_store.held(consumers)) if claims else set()
            backlog = self._lease_store.backlog(self._consumers) if self._view.wants_backlog else None
            grace_s = self._config.reclaim_after_seconds
            return Seen(
                [c for c in claims if c not in held],
                backlog,
                self._take_back(),
                0 if grace_s is None else administering.reclaim_overdue(self._lease_store.database, grace_s),
                brought_back,
            )

        self._aside.ask(look, self._saw)

    def _clock_went_back(self) -> bool:
        """Since the last time that this was asked, and by so much that due times are affected."""
        ahead_s = time.time() - time.monotonic()
        before_s, self._clock_ahead_s = self._clock_ahead_s, ahead_s
        return ahead_s < before_s - CLOCK_BACK_S

    def _saw(self, seen: "Seen | None") -> None:
        self._look_for_hints()  # on a new connection, perhaps
        if seen is None:
            return
        self._backlog = seen.backlog
        if seen.gone:
            self._handle(events.Gone(seen.gone))
        if seen.recovered:
            self._view.note(
                events.Note(f"took back {count(seen.recovered, 'message')} of a supervisor that died")
            )
        if seen.reclaimed:
            self._view.note(
                events.Note(
                    f"took back {count(seen.reclaimed, 'message')} that clients of pgqrs 0.15 held too long"
                )
            )
        if seen.brought_back:
            self._view.note(
                events.Note(
                    f"the clock went back: {count(seen.brought_back, 'message')} that waited by the old time are due by the new one",
                    "warning",
                )
            )
        if seen.recovered or seen.reclaimed or seen.brought_back:
            self._handle(events.Hinted())

    def _is_known(self, n: int, running: OnBoard) -> bool:
        """That it has the CPU there. What begins on an event loop says so itself, and takes turns with the others."""
        worker = self._core.workers[n]
        if worker.kind == "async":
            return True
        if (cpu := worker.on_cpu) is None or (run := worker.runs.get(cpu.run)) is None:
            return False
        return running == OnBoard(cpu.run, run.claim.claim_no, cpu.position, cpu.step)

    def _is_there(self, n: int, message_id: int) -> bool:
        """Whether this is a run that the worker has, or none and was none."""
        worker = self._core.workers[n]
        return message_id in worker.runs or (not message_id and not worker.stray)

    def _weigh(self) -> None:
        """What workers hold in memory, where there is a limit to that, and whether one computes that holds others up."""
        for worker in list(self._core.workers.values()):
            limited = worker.on_cpu is not None and worker.on_cpu.memory_bytes is not None
            wanted = limited or self._options.max_rss_bytes is not None or worker.holds_up
            if worker.pid is not None and wanted and (rss_bytes := resident_bytes(worker.pid)) is not None:
                self._handle(events.Measured(worker.id, rss_bytes, cpu_seconds(worker.pid)))

    def _lost(self) -> None:
        """Our claims may be another's: nothing may run on. Then, as soon as the database lets us, a new life."""
        self._settle()  # what is ordered now is dropped with the rest
        self._out.clear()
        self._wants.clear()
        self._consumers = {}
        self._handle(events.LeaseLost(self._in_flight))
        self._settle()  # kills, before anything that may wait
        self._out.clear()
        self._joined = False
        # A link may be silent without being closed: who waits for an answer on it hears now that there is none.
        sever(self._store, self._lease_store)
        self._lease.close(0.0)

    def _join_anew(self, joined: "Joined | None") -> None:
        if joined is not None:
            self._joined_as(joined)
            self._handle(events.Registered(self._consumers, self._lease.until))

    def _look_for_hints(self) -> None:
        hinted = self._watch.look()
        if hinted != ():
            self._handle(events.Hinted(hinted))
        if (fd := self._watch.fileno()) != self._watched:
            if self._watched is not None:
                self._selector_forget(self._watched)
            if fd is not None:
                self._register_fd(fd, self._look_for_hints)
            self._watched = fd

    # What the nursery says

    def _read_launcher(self) -> None:
        before = self._launcher.fileno()
        for news in self._launcher.read():
            match news:
                case Child():
                    self._pipes.adopt(news)
                case LoadFailed():
                    self._ends_with(
                        Happened.NO_WORKERS, f"the target can no longer be imported: {news.error}"
                    )
                case ForkFailed():
                    self._handle(
                        events.Exited(news.worker, None, None, failure=f"could not be started: {news.error}")
                    )
                case Restarted():
                    self._view.note(
                        events.Note(f"the nursery died ({news.how}); a new one takes over", "warning")
                    )
                    self._selector_forget(before)
                    self._register_fd(self._launcher.fileno(), self._read_launcher)
                case Loaded():
                    pass

    def _show(self, n: int, run: int | None, text: str, is_message: bool) -> None:
        if run is None and (worker := self._core.workers.get(n)):
            run = worker.last_run
        self._view.line(run, text, is_message)

    # Ending

    def _ends_with(self, what: Happened, reason: str = "") -> bool:
        then = after(self._core.level, what, reason)
        if isinstance(then, events.Exit):
            self._exit = then
        return self._exit is not None

    def _hear_parent(self) -> None:
        """The level of stopping that it wants; its end without a word is its death."""
        assert self._options.parent_fd is not None
        if told := os.read(self._options.parent_fd, 64):
            self._signals = max(self._signals, max(told) - ord("0"))
        else:
            self._parent_is_gone()

    def _parent_is_gone(self) -> None:
        """Heard of by the end of its pipe, which a fork of the parent may hold open, or of the parent itself."""
        for fd in (self._options.parent_fd, self._parent_end):
            if fd is not None:
                self._selector_forget(fd)
        if not self._signals:
            self._stop_now_at = time.monotonic() + ORPHAN_GRACE_S
        self._signals = max(self._signals, 2)

    def _sign_off(self) -> None:
        self._lease.close()
        supervisor_id = self._supervisor_id
        if supervisor_id is not None and self._gone() is None and self._joined:  # else the lease will say it
            self._aside.ask(
                lambda: self._lease_store.retire(supervisor_id, self._config.max_read_ct),
                lambda _: None,
            )
        self._aside.close(SIGN_OFF_S)

    def _state(self) -> State:
        now = time.monotonic()
        return State(
            workers=worker_states(self._core, now),
            finished=self._core.finished,
            failed=self._core.failed,
            crashes=self._core.crashes,
            held=len(self._core.runs),
            stopping=self._core.level,
            away=self._gone(),
            backlog=self._backlog,
        )

    # The selector

    def _register_fd(self, fd: Any, do: Callable[[], None]) -> None:
        self._selector.register(fd, selectors.EVENT_READ, do)

    def _selector_forget(self, fd: int) -> None:
        with suppress(KeyError, ValueError):
            self._selector.unregister(fd)


class Joined(Struct, frozen=True):
    """What the database made of us. `began`: when it was asked, which is before our lease began."""

    id: int
    consumers: dict[int, int]  # by queue
    recovered: int
    began: float


class Seen(Struct, frozen=True):
    """What a look around the database found; `backlog` None where nobody wants it."""

    gone: list[Claim]
    backlog: int | None
    recovered: int
    reclaimed: int
    brought_back: int


class _closing:
    def __init__(self, store: MessageStore) -> None:
        self._store = store

    def __enter__(self) -> MessageStore:
        return self._store

    def __exit__(self, *_: object) -> None:
        self._store.close()


def _rest_collector() -> None:
    """Nearly all that a turn makes is gone with it, and none of it in circles: looking for those took a fifth of the supervisor's
    time (3,000 against 4,300 no-op workflows a second, in turns)."""
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


def _poke(sock: socket.socket) -> None:
    with suppress(BlockingIOError, OSError):
        sock.send(b".")


def _leave_terminal() -> None:
    """One that has hung up refuses every word: what there is to say goes nowhere then."""
    for fd in (1, 2):
        try:
            termios.tcgetattr(fd)
        except termios.error as e:
            if e.args[0] == errno.EIO:
                with suppress(OSError):
                    null = os.open(os.devnull, os.O_WRONLY)
                    os.dup2(null, fd)
                    os.close(null)


def _drain(sock: socket.socket) -> None:
    with suppress(BlockingIOError):
        while sock.recv(4096):
            pass
