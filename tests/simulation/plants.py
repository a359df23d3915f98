"""Bugs to plant, one for each violation that the simulation claims to find: a check that cannot
fail proves nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from pgqrs.flows.flow import Suspended
from pgqrs.model import maps
from pgqrs.model.turns import Turn
from pgqrs.model.writes import Outcome
from pgqrs.store import sql
from pgqrs.store.store import MessageStore
from supervisors import wire
from supervisors.core import core, endings, events, limits, session, states
from supervisors.worker.worker import Lane, Worker
from tests.simulation import invariants, workers
from tests.simulation import supervisor as sim

Plant = Callable[[], Any]
PLANTS: dict[str, tuple[Plant, str]] = {}


def plant(violation: str) -> Callable[[Plant], Plant]:
    """Names the invariant that must find the bug. Several names if chance decides which one fails
    first.
    """

    def add(function: Plant) -> Plant:
        PLANTS[function.__name__.replace("_", "-")] = contextmanager(function), violation
        return function

    return add


@contextmanager
def planted(name: str | None) -> Iterator[None]:
    if name is None:
        yield
        return
    with PLANTS[name][0]():
        yield


@contextmanager
def _sql(statement: str, old: str, new: str) -> Iterator[None]:
    sources = dict(sql._sources())
    assert old in sources[statement], f"{statement} has no {old!r} any more"
    sources[statement] = sources[statement].replace(old, new)
    sql.statement.cache_clear()
    with patch.object(sql, "_sources", lambda: sources):
        yield
    sql.statement.cache_clear()


@plant("stale-write")
def a_fence_that_does_not_ask_for_the_claim() -> Iterator[None]:
    """Every write to a known message is applied."""
    held = "coalesce(m.consumer_worker_id, 0) = r.consumer_id and m.claim_no = r.claim_no"
    with _sql("fence", f"and {held}", ""), _sql("archive_held", f"and {held}\n", ""):
        yield


@plant("checkpoint-changed")
def a_checkpoint_that_overwrites() -> Iterator[None]:
    """A body executes again although its result is recorded, and its new result replaces the
    recorded one. The other checks are switched off.
    """
    with (
        _sql("save_steps", "where s.status <> 'SUCCESS'", "where true"),
        _sql(
            "history", "s.status in ('SUCCESS', 'ERROR')", "(s.status = 'ERROR' or s.step_name like 'pause%')"
        ),
        patch("tests.simulation.invariants.Watch.body_started", lambda self, *_: None),
        patch("tests.simulation.invariants.Watch.handled_once_at_least", lambda self, *_: None),
    ):
        yield


@plant("item-twice-at-once item-repeated lost-write not-ended twice-at-once claim-number step-repeated")
def a_claim_of_what_is_held() -> Iterator[None]:
    with _sql("ready", "and m.consumer_worker_id is null", ""):
        yield


@plant("step-repeated result-mismatch stale-write checkpoint-changed twice-at-once exception")
def an_answer_before_the_commit() -> Iterator[None]:
    """The worker reads that its checkpoint is durable when the checkpoint has only been handed
    over.
    """
    save = core.Core._save

    def eager(self: core.Core, write: Any, urgent: bool = False) -> None:
        save(self, write, urgent)
        run = self.runs.get(write.claim.message_id)
        if write.step is not None and write.message is None and run is not None and run.worker is not None:
            told = wire.Committed(((run.id, run.claim.claim_no),))
            self._orders.append(events.Send(run.worker, told))

    with patch.object(core.Core, "_save", eager):
        yield


@plant("step-repeated result-mismatch stale-write checkpoint-changed twice-at-once exception")
def a_run_that_goes_on_elsewhere_before_what_it_said_is_committed() -> Iterator[None]:
    came_back = core.Core._came_back

    def eager(self: core.Core, run: Any) -> None:
        unsaved, run.unsaved = run.unsaved, 0
        came_back(self, run)
        run.unsaved = unsaved

    with patch.object(core.Core, "_came_back", eager):
        yield


@plant("step-repeated result-mismatch")
def a_run_that_goes_on_elsewhere_without_what_it_recorded() -> Iterator[None]:
    with patch.object(sim.state.Run, "history", lambda self: self.claimed.steps):
        yield


@plant("crash-budget not-ended too-many-events")
def a_crash_budget_without_an_end() -> Iterator[None]:
    with patch.object(endings, "CRASHES_MAX", 10**9):
        yield


@plant("crash-budget")
def a_crash_charged_to_everybody_in_the_worker() -> Iterator[None]:
    exited = core.Core._exited

    def charging(self: core.Core, event: events.Exited, now: float) -> None:
        worker = self.workers[event.worker]
        if worker.on_cpu is not None and worker.killing is None:
            for run in worker.runs.values():
                if run.id != worker.on_cpu.run and run.started and not run.ending:
                    run.crashes += 1
                    self._end_as(
                        run, endings.crashed(run, worker, event, worker.on_cpu, self.settings), urgent=True
                    )
        exited(self, event, now)

    with patch.object(core.Core, "_exited", charging):
        yield


@plant("read-budget")
def deliveries_without_a_limit() -> Iterator[None]:
    settings = sim.state.Settings

    def unlimited(**given: Any) -> Any:
        return settings(**given | {"read_ct_max": 10**9})

    with (
        _sql("ready", "and m.read_ct < :read_ct_max", "and :read_ct_max > 0"),
        _sql("bury_of_supervisor", "and m.read_ct >= :read_ct_max", "and :read_ct_max < 0"),
        patch.object(sim.state, "Settings", unlimited),
    ):
        yield


@plant("not-ended")
def an_unsure_turn_that_forgets_what_it_claimed() -> Iterator[None]:
    """A claim whose answer was lost leaves messages that no supervisor knows to be its own."""
    with patch.object(core.Core, "_held", lambda self, event: None):
        yield


@plant("lost-write")
def an_unsure_turn_that_takes_its_own_end_for_a_loss() -> Iterator[None]:
    turn = MessageStore.turn

    def never_unsure(self: MessageStore, writes: Any, wanted: Any = (), unsure: bool = False) -> Turn:
        return turn(self, writes, wanted, False)

    with patch.object(MessageStore, "turn", never_unsure):
        yield


@plant("claim-number")
def a_claim_that_counts_nothing() -> Iterator[None]:
    with _sql("take", "claim_no = {use next_claim_no}", "claim_no = c.claim_no"):
        yield


@plant("ended-oddly")
def a_death_without_a_reason() -> Iterator[None]:
    def silent(run: Any, told: bytes, settings: Any) -> Any:
        if run.function.workflow_id is None:
            return endings.Ending(core.Write(run.claim, message=core.Archive("failed")))
        settle = core.Settle(core.WorkflowStatus.Error, error=told)
        return endings.Ending(core.Write(run.claim, settle=settle, message=core.Archive()))

    with patch.object(endings, "raised", silent):
        yield


@plant("left-over")
def an_outcome_that_nobody_hears_of() -> Iterator[None]:
    saved = core.Core._saved

    def half_deaf(self: core.Core, outcomes: Any, now: float) -> None:
        saved(self, [o for o in outcomes if not (o.write.message and o.write.claim.message_id % 5 == 0)], now)

    with patch.object(core.Core, "_saved", half_deaf):
        yield


@plant("not-ended")
def nobody_recovers_what_the_dead_held() -> Iterator[None]:
    with patch.object(MessageStore, "recover", lambda self, read_ct_max: 0):
        yield


@plant("lost-write step-repeated result-mismatch not-ended left-over")
def a_lease_that_nobody_heeds() -> Iterator[None]:
    """A supervisor that was cut off for longer than its lease continues with the runs that it
    had.
    """
    with (
        patch.object(session, "FENCE_MARGIN_S", -(10.0**9)),
        patch.object(session.Session, "_lose_lease", lambda self, now: None),
    ):
        yield


@plant("end-changed archived-changed stale-write")
def an_end_that_can_be_changed() -> Iterator[None]:
    with (
        _sql("settle_runs", "and w.status not in ('SUCCESS', 'ERROR', 'CANCELLED')", ""),
        _sql("fence", "where m.archived_at is null", "where true"),
        _sql("archive_held", "and m.archived_at is null", ""),
    ):
        yield


@plant("status-changed")
def a_cancellation_that_is_forgotten() -> Iterator[None]:
    turn = MessageStore.turn

    def forgetful(self: MessageStore, writes: Any, wanted: Any = (), unsure: bool = False) -> Turn:
        forget = "update pgqrs_workflow_runs set status = 'RUNNING' where status = 'CANCELLING'"
        self.database._connection.execute(forget)  # type: ignore[attr-defined]
        return turn(self, writes, wanted, unsure)

    with patch.object(MessageStore, "turn", forgetful):
        yield


@plant("twice-at-once step-repeated result-mismatch exception")
def a_run_given_to_two_workers() -> Iterator[None]:
    """The supervisor gives a run to another worker while the first worker still has it, as if it
    had not read the first one's pipe to its end.
    """
    drop = core.Core._drop

    def only_says_so(self: core.Core, run: Any, now: float) -> None:
        with patch.object(limits.Limits, "kill", lambda *_, **__: None):
            drop(self, run, now)

    stop = core.Core._of_run

    def restless(self: core.Core, worker: Any, run: Any, frame: Any, now: float) -> None:
        stop(self, worker, run, frame, now)
        if isinstance(frame, wire.Started) and frame.position == 1 and not run.ending:
            run.state = states.RunState.SENT
            worker.leave(run.id)
            self.waiting.append(run)

    with patch.object(core.Core, "_drop", only_says_so), patch.object(core.Core, "_of_run", restless):
        yield


@plant("never-handled")
def a_message_archived_instead_of_run() -> Iterator[None]:
    admit = core.Core._admit

    def lazy(self: core.Core, run: Any, now: float) -> None:
        if run.function.workflow_id is None and run.claimed.read_ct == 1 and run.id % 7 == 0:
            self._end(run, core.Write(run.claim, message=core.Archive()))
        else:
            admit(self, run, now)

    with patch.object(core.Core, "_admit", lazy):
        yield


@plant("result-mismatch ended-oddly step-repeated")
def a_result_without_its_last_checkpoint() -> Iterator[None]:
    """The end of a run is written without a step that was recorded before."""
    turn = MessageStore.turn

    def forgetful(self: MessageStore, writes: Any, wanted: Any = (), unsure: bool = False) -> Turn:
        kept = [w for w in writes if w.step is None or w.step.position != 2 or w.message is not None]
        told = turn(self, kept, wanted, unsure)
        by_write = {id(o.write): o for o in told.outcomes}
        return Turn([by_write.get(id(w)) or Outcome(w, True) for w in writes], told.taken)

    with patch.object(MessageStore, "turn", forgetful):
        yield


@plant("twice-at-once")
def a_recall_of_the_run_that_the_worker_is_in() -> Iterator[None]:
    recall = workers.SimWorker.recall

    def blind(self: workers.SimWorker) -> int:
        recall(self)
        return 0

    with patch.object(workers.SimWorker, "recall", blind):
        yield


@plant("twice-at-once")
def a_worker_that_does_not_heed_the_gate() -> Iterator[None]:
    may_enter = Worker._may_enter

    def heedless(self: Worker) -> bool:
        may_enter(self)
        return True

    with patch.object(Worker, "_may_enter", heedless):
        yield


# Maps


@plant("item-twice-at-once item-repeated")
def a_cut_that_the_worker_is_not_told() -> Iterator[None]:
    """The items go to another worker, and this one goes on with them."""
    cut = core.Core._cut_entered

    def secret(self: core.Core, worker: Any, event: Any) -> Any:
        cut(self, worker, event)
        return ()

    with (
        patch.object(core.Core, "_cut_entered", secret),
        patch.object(core.ranges, "is_beyond", lambda run, frame: False),
    ):
        yield


@plant("item-twice-at-once item-repeated")
def an_item_that_does_not_heed_the_gate() -> Iterator[None]:
    """The worker begins an item while its supervisor takes it."""

    def heedless(self: Lane, call: Any) -> bool:
        self._worker.looks_now_and_then()
        if self.leaving:
            raise Suspended
        return True

    with (
        patch.object(Lane, "_enters_item", heedless),
        patch.object(core.ranges, "is_beyond", lambda run, frame: False),
    ):
        yield


@plant("item-twice-at-once item-repeated item-twice")
def a_range_that_keeps_what_was_cut_off() -> Iterator[None]:
    with _sql("shorten_range", "upto > :at", "upto < :at"):
        yield


@plant("item-lost")
def a_tail_that_nobody_gets() -> Iterator[None]:
    with _sql("place_tail", ":at, g.upto from", ":at, :at from"):
        yield


@plant("item-misplaced")
def outcomes_one_place_further() -> Iterator[None]:
    line_of = maps.line_of
    with patch.object(maps, "line_of", lambda first, step: line_of(first + (first > 2), step)):
        yield


@plant("item-miscounted")
def outcomes_that_are_counted_per_turn() -> Iterator[None]:
    with _sql("count_outcomes", "done = p.done + excluded.done", "done = p.done + 1"):
        yield


@plant("item-twice item-lost")
def outcomes_without_a_look_at_those_that_are_there() -> Iterator[None]:
    """A worker executes items again whose outcomes are recorded, and they are recorded again. The
    other check is switched off.
    """
    with (
        _sql("save_outcomes", "o.first + o.count > r.first)", "o.first + o.count > r.first and 1 = 2)"),
        _sql("range_outcomes", "o.first < r.upto", "o.first < r.upto and 1 = 2"),
        patch.object(invariants.Watch, "item_started", lambda *_: None),
    ):
        yield
