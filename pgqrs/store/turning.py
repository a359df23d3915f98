"""A supervisor's turn: what its runs wrote and what it claims, one transaction for all of it.

The statements go out together, without waiting for each other's answers, on the assumption that every write is still its
writer's to make, which the fence, the first of them, then confirms. Where it does not, everything is rolled back and done again
with what the fence lets through.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import msgspec
from msgspec import Struct

from pgqrs import errors
from pgqrs.states import WorkflowStatus
from pgqrs.store.database import Answer, Database, Row, Transaction
from pgqrs.store.sql import DAWN
from pgqrs.writes import Archive, Claim, Claimed, Crash, Outcome, RecordedStep, Release, Write


class Wanted(Struct, frozen=True):
    """A claim that a supervisor asks for. `after` is the watermark of the last one, None to look at the whole queue. With `lapsed`
    it is to have what library consumers let lapse too. With `polls` nothing is to be expected, so a look comes first."""

    queue_id: int
    consumer_id: int
    limit: int
    read_ct_max: int
    after: tuple[Any, int] | None = None
    lapsed: bool = True
    polls: bool = False


class Taken(Struct, frozen=True):
    """What a claim got, oldest first. `after` is the watermark for the next."""

    wanted: Wanted
    messages: list[Claimed]
    after: tuple[Any, int] | None


class Turn(Struct, frozen=True):
    outcomes: list[Outcome]
    taken: list[Taken]


def turn(
    database: Database, writes: Sequence[Write], wanted: Sequence[Wanted] = (), unsure: bool = False
) -> Turn:
    """One transaction: the writes in their order of kinds, then the claims, which see what the writes released.

    If the database refuses a value, the writes are replayed one by one, so that it hurts its own run only.
    `unsure` says that these writes may have been committed before, unseen: an ended message that still carries its
    claim then counts as applied.
    """
    try:
        return _turn(database, writes, wanted, unsure)
    except errors.DatabaseError:
        if not writes:
            raise
        outcomes = [_alone(database, w, unsure) for w in writes]
        return Turn(outcomes, _turn(database, (), wanted, False).taken)


def _alone(database: Database, write: Write, unsure: bool) -> Outcome:
    try:
        return _turn(database, (write,), (), unsure).outcomes[0]
    except errors.DatabaseError as e:
        return Outcome(write, applied=False, failure=str(e))


def _turn(database: Database, writes: Sequence[Write], wanted: Sequence[Wanted], unsure: bool) -> Turn:
    if writes and not unsure:
        with suppress(_NotOurs), database.pipelined() as tx:
            fence, states = tx.send("fence", _claims(writes)), _write(tx, writes)
            claims = [_claim(tx, w) for w in wanted]
            if len(fence()) < len(_claims(writes)):
                raise _NotOurs
            status_of: dict[int, str] = dict(states())
            outcomes = [_outcome(w, True, status_of.get(w.claim.message_id)) for w in writes]
            return Turn(outcomes, [_taken(tx, w, c) for w, c in zip(wanted, claims, strict=True)])
    if writes:
        with database.transaction() as tx:
            return carry_out(tx, writes, wanted, unsure)
    return _claims_alone(database, wanted)


class _NotOurs(Exception):
    """A message is another's by now: nothing of this may be committed."""


def carry_out(
    tx: Transaction, writes: Sequence[Write] = (), wanted: Sequence[Wanted] = (), unsure: bool = False
) -> Turn:
    """In the caller's transaction: only what the fence lets through."""
    ours = set(tx.run("fence", _claims(writes))) if writes else set()
    ended = {(m, n): s for m, n, s in tx.run("archived_by", _claims(writes))} if unsure else {}
    status_of: dict[int, str] = dict(_write(tx, [w for w in writes if _key(w) in ours])())
    return Turn(
        [
            _outcome(w, True, status_of.get(w.claim.message_id))
            if _key(w) in ours
            else _outcome(w, _key(w) in ended, ended.get(_key(w)))
            for w in writes
        ],
        [_taken(tx, w, _claim(tx, w)) for w in wanted],
    )


def _claims_alone(database: Database, wanted: Sequence[Wanted]) -> Turn:
    """Nothing to be confirmed: one round trip, and no waiting for the disk. A claim that a crash of the server undoes is found to be
    gone (`held`), and whatever was written for it by then has made it durable."""
    if polled := [w for w in wanted if w.polls]:
        with database.reading() as tx:
            queues = [(w.queue_id,) for w in polled]
            ready = {q for (q,) in tx.run("ready_queues", queues, read_ct_max=polled[0].read_ct_max)}
        if not any(w.queue_id in ready or not w.polls for w in wanted):
            return Turn([], [Taken(w, [], w.after) for w in wanted])
    if any(w.lapsed for w in wanted):
        with database.pipelined() as tx:
            return Turn([], [_taken(tx, w, _claim(tx, w)) for w in wanted])
    with database.pipelined(lazily=True) as tx:
        claims = [_claim(tx, w) for w in wanted]
    with database.reading() as tx:
        return Turn([], [_taken(tx, w, c) for w, c in zip(wanted, claims, strict=True)])


def _key(w: Write) -> tuple[int, int]:
    return w.claim.message_id, w.claim.claim_no


def _outcome(w: Write, applied: bool, status: str | None) -> Outcome:
    return Outcome(w, applied, WorkflowStatus(status) if status else None)


def _claims(writes: Iterable[Write]) -> list[Row]:
    return sorted({(w.claim.message_id, w.claim.consumer_id, w.claim.claim_no) for w in writes})


# Writing


def _write(tx: Transaction, live: Sequence[Write]) -> Answer:
    """Applies the parts by kind, runs before messages. The answer is what their runs are afterwards."""
    if not live:
        return list
    if begun := {
        w.claim.message_id: (w.begin.workflow_id, w.claim.message_id, w.claim.consumer_id, w.begin.attempt)
        for w in live
        if w.begin
    }:
        tx.send("begin_runs", begun.values())
    if steps := {(w.claim.message_id, w.step.name): w for w in live if w.step}:
        tx.send("save_steps", [_step_row(w) for w in steps.values()])
    if forgiven := sorted({(w.claim.message_id,) for w in live if w.forgives}):
        tx.send("forgive_crashes", forgiven)
    if crashed := {w.claim.message_id: (w.crash, msgspec.json.encode(w.crash)) for w in live if w.crash}:
        tx.send("crash_runs", [(m, c.crash_count, raw) for m, (c, raw) in crashed.items()])
        if stepped := [_crash_row(m, c, raw) for m, (c, raw) in crashed.items() if c.step]:
            tx.send("crash_steps", stepped)
    if settled := {
        w.claim.message_id: (w.claim.message_id, w.settle.status.value, w.settle.output, w.settle.error)
        for w in live
        if w.settle
    }:
        tx.send("settle_runs", settled.values())
    # Not earlier, by the fence itself: having waited for a lock, a statement still sees other tables as they were before.
    states = tx.send("run_states", sorted({(w.claim.message_id,) for w in live}))
    if released := {w.claim.message_id: w.message for w in live if isinstance(w.message, Release)}:
        tx.send("release", [(m, r.delay_s, r.refund) for m, r in released.items()])
    if archived := {
        w.claim.message_id: w.message.dead_reason for w in live if isinstance(w.message, Archive)
    }:
        tx.send("archive", archived.items())
    return states


def _step_row(w: Write) -> Row:
    s = w.step
    assert s is not None
    return (
        w.claim.message_id, s.name, s.status.value, s.output, s.error, s.seconds, s.retry_count, s.retry_in_s,
        s.position, s.pid, s.cpu_seconds, s.peak_rss_bytes,
    )  # fmt: skip


def _crash_row(message_id: int, c: Crash, raw: bytes) -> Row:
    return (message_id, c.step, c.position, c.pid, c.cpu_seconds, c.peak_rss_bytes, raw)


# Claiming


def _claim(tx: Transaction, wanted: Wanted) -> Answer:
    after_vt, after_id = wanted.after or (DAWN[tx.dialect], 0)
    return tx.send(
        "claim",
        queue_id=wanted.queue_id,
        consumer_id=wanted.consumer_id,
        read_ct_max=wanted.read_ct_max,
        limit=wanted.limit,
        after_vt=after_vt,
        after_id=after_id,
    )


def _taken(tx: Transaction, wanted: Wanted, claim: Answer) -> Taken:
    rows = sorted(claim(), key=lambda r: (r[4], r[0]))
    watermark = (rows[-1][4], rows[-1][0]) if rows else wanted.after
    if wanted.lapsed and len(rows) < wanted.limit:
        rows += tx.run(
            "claim_lapsed",
            queue_id=wanted.queue_id,
            consumer_id=wanted.consumer_id,
            read_ct_max=wanted.read_ct_max,
            limit=wanted.limit - len(rows),
        )
    history = _history(tx, [(r[0],) for r in rows if r[5]])
    messages = []
    for message_id, claim_no, read_ct, payload, _, _ in rows:
        claim_ = Claim(message_id, wanted.consumer_id, claim_no)
        status, attempt, crash_count, age_s, steps = history.get(message_id, (None, 0, 0, None, []))
        messages.append(
            Claimed(claim_, _raw(payload) or b"", read_ct, status, attempt, crash_count, tuple(steps), age_s)
        )
    return Taken(wanted, messages, watermark)


_Begun = tuple[WorkflowStatus, int, int, float | None, list[RecordedStep]]


def _history(tx: Transaction, ids: Sequence[Row]) -> dict[int, _Begun]:
    found: dict[int, _Begun] = {}
    for message_id, status, attempt, crashes, age_s, *step in tx.run("history", ids) if ids else ():
        run = found.setdefault(message_id, (WorkflowStatus(status), attempt, crashes, age_s, []))
        name, position, step_status, output, error, retries = step
        if name is not None:
            at = position if position is not None else len(run[4])  # 0.15 numbers no steps
            run[4].append(RecordedStep(name, at, step_status, _raw(output), _raw(error), retries))
    return found


def _raw(value: bytes | str | None) -> bytes | None:
    return value.encode() if isinstance(value, str) else value
