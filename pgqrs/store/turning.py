"""A supervisor's turn: what its runs wrote and what it claims. Writes, and the claims that come with them, are one transaction.

Each statement is answered before the next one is sent. In a pipeline, which would save that time, a server waits for more without
its clock running: a supervisor that was stopped in the middle would keep its locks, and everybody from taking over from it, until it
went on. `idle_in_transaction_session_timeout` counts from an answer that was waited for.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any, cast

import msgspec
from msgspec import Struct

from pgqrs import errors
from pgqrs.states import WorkflowStatus
from pgqrs.store.database import Database, Row, Transaction
from pgqrs.store.jsonb import exact_text
from pgqrs.store.sql import DAWN, Dialect
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
    """One transaction: the writes in their order of kinds, then the claims, which see what the writes released. Without writes, each
    claim on a server commits by itself.

    If the database refuses a value, the writes are replayed one by one, so that the value hurts its own run only: of that claim
    nothing more is written. A refusal that is not a value's fault, such as a missing privilege, is raised: it hurts no run.
    `unsure` says that these writes may have been committed before, unseen: an ended message that still carries its
    claim then counts as applied.
    """
    try:
        return _turn(database, writes, wanted, unsure)
    except errors.DatabaseError as e:
        if not writes or not e.refuses_value:
            raise
        outcomes = _one_by_one(database, writes, unsure)
        return Turn(outcomes, _turn(database, (), wanted, False).taken)


def _one_by_one(database: Database, writes: Sequence[Write], unsure: bool) -> list[Outcome]:
    """What follows a refused write of the same claim must not be written without it: a run would
    end with a step missing."""
    refused: dict[Claim, str] = {}
    outcomes = []
    for write in writes:
        if write.claim not in refused:
            outcomes.append(_alone(database, write, unsure))
        else:
            outcomes.append(Outcome(write, applied=False, failure=refused[write.claim]))
        if (failure := outcomes[-1].failure) is not None:
            refused[write.claim] = failure
    return outcomes


def _alone(database: Database, write: Write, unsure: bool) -> Outcome:
    try:
        return _turn(database, (write,), (), unsure).outcomes[0]
    except errors.DatabaseError as e:
        if not e.refuses_value:
            raise
        return Outcome(write, applied=False, failure=str(e))


def follows_refused(queued: deque[Write], outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Takes out of what is queued whatever comes behind a refused write of the same claim, and
    says that it is refused as well."""
    refused = {o.write.claim: o.failure for o in outcomes if o.failure is not None}
    if not refused:
        return []
    behind = [w for w in queued if w.claim in refused]
    for w in behind:
        queued.remove(w)
    return [Outcome(w, applied=False, failure=refused[w.claim]) for w in behind]


def _turn(database: Database, writes: Sequence[Write], wanted: Sequence[Wanted], unsure: bool) -> Turn:
    if writes:
        with database.transaction() as tx:
            return carry_out(tx, writes, wanted, unsure)
    return Turn([], _claims_alone(database, wanted))


def carry_out(
    tx: Transaction, writes: Sequence[Write] = (), wanted: Sequence[Wanted] = (), unsure: bool = False
) -> Turn:
    """In the caller's transaction: only what the fence lets through."""
    if not unsure and all(map(_only_archives, writes)):
        outcomes = _archive(tx, writes) if writes else []
    else:
        outcomes = _fenced(tx, writes, unsure)
    return Turn(outcomes, [_taken(tx, w, _claim(tx, w)) for w in wanted])


def _only_archives(w: Write) -> bool:
    """As the end of every handler does."""
    return isinstance(w.message, Archive) and not (w.begin or w.step or w.crash or w.settle)


def _archive(tx: Transaction, writes: Sequence[Write]) -> list[Outcome]:
    reasons = {w.claim: cast(Archive, w.message).dead_reason for w in writes}
    rows = sorted((c.message_id, c.consumer_id, c.claim_no, reason) for c, reason in reasons.items())
    done = set(tx.run("archive_held", rows))
    return [Outcome(w, _key(w) in done) for w in writes]


def _fenced(tx: Transaction, writes: Sequence[Write], unsure: bool) -> list[Outcome]:
    claims = sorted({(w.claim.message_id, w.claim.consumer_id, w.claim.claim_no) for w in writes})
    ours = set(tx.run("fence", claims))
    ended = {(m, n): s for m, n, s in tx.run("archived_by", claims)} if unsure else {}
    status_of = _write(tx, [w for w in writes if _key(w) in ours])

    def outcome(w: Write) -> Outcome:
        key = _key(w)
        if key in ours:
            return Outcome(w, True, _STATUS[status_of.get(key[0])])
        return Outcome(w, key in ended, _STATUS[ended.get(key)])

    return [outcome(w) for w in writes]


_STATUS: dict[str | None, WorkflowStatus | None] = {s.value: s for s in WorkflowStatus} | {None: None}


def _claims_alone(database: Database, wanted: Sequence[Wanted]) -> list[Taken]:
    """For queues of which nothing is expected, one look goes before. On a server each is a statement that commits by itself; to a file
    they are written together."""
    ready = {w.queue_id for w in wanted if not w.polls}
    if polled := [(w.queue_id,) for w in wanted if w.polls]:
        with database.reading() as tx:
            ready |= {q for (q,) in tx.run("ready_queues", polled, read_ct_max=wanted[0].read_ct_max)}
    due = [w for w in wanted if w.queue_id in ready]
    if database.dialect == "postgres":
        taken = [_claim_alone(database, w) for w in due]
    elif due:
        with database.transaction() as tx:
            taken = carry_out(tx, (), due).taken
    else:
        taken = []
    return taken + [Taken(w, [], w.after) for w in wanted if w.queue_id not in ready]


def _claim_alone(database: Database, wanted: Wanted) -> Taken:
    if wanted.lapsed:
        with database.transaction() as tx:
            return _taken(tx, wanted, _claim(tx, wanted))
    with database.single() as tx:
        rows = _claim(tx, wanted)
    if not any(begun for *_, begun in rows):
        return _as_taken(wanted, rows, {})
    with database.reading() as tx:
        return _taken(tx, wanted, rows)


def _key(w: Write) -> tuple[int, int]:
    return w.claim.message_id, w.claim.claim_no


# Writing


def _write(tx: Transaction, live: Sequence[Write]) -> dict[int, str]:
    """Applies the parts by kind, runs before messages, and returns what their runs are afterwards."""
    if not live:
        return {}
    settled = {w.claim.message_id: _settle_row(w) for w in live if w.settle}
    states: dict[int, str] = {}
    if begun := {w.claim.message_id: _begin_row(w, settled.get(w.claim.message_id)) for w in live if w.begin}:
        states.update(tx.run("begin_runs", begun.values()))
    if steps := {(w.claim.message_id, w.step.name): w for w in live if w.step}:
        tx.run("save_steps", [_step_row(w, tx.dialect) for w in steps.values()])
    if forgiven := sorted({(w.claim.message_id,) for w in live if w.forgives}):
        tx.run("forgive_crashes", forgiven)
    if crashed := {w.claim.message_id: (w.crash, msgspec.json.encode(w.crash)) for w in live if w.crash}:
        tx.run("crash_runs", [(m, c.crash_count, raw) for m, (c, raw) in crashed.items()])
        if stepped := [_crash_row(m, c, raw) for m, (c, raw) in crashed.items() if c.step]:
            tx.run("crash_steps", stepped)
    if settled:
        states.update(tx.run("settle_runs", settled.values()))
    # Not earlier, by the fence itself: having waited for a lock, a statement still sees other tables as they were before.
    if untold := sorted({w.claim.message_id for w in live}.difference(states)):
        states.update(tx.run("run_states", [(m,) for m in untold]))
    if released := {w.claim.message_id: w.message for w in live if isinstance(w.message, Release)}:
        tx.run("release", [(m, r.delay_s, r.refund) for m, r in released.items()])
    if archived := {
        w.claim.message_id: w.message.dead_reason for w in live if isinstance(w.message, Archive)
    }:
        tx.run("archive", archived.items())
    return states


def _settle_row(w: Write) -> Row:
    s = w.settle
    assert s is not None
    return w.claim.message_id, s.status.value, s.output, s.error


def _begin_row(w: Write, settled: Row | None) -> Row:
    """`settled`: what its run is settled to in the same turn."""
    b = w.begin
    assert b is not None
    ending = settled[1:] if settled is not None and settled[1] in _ENDED else (None, None, None)
    return b.workflow_id, w.claim.message_id, w.claim.consumer_id, b.attempt, *ending


_ENDED = {s.value for s in WorkflowStatus if s.terminal}


def _step_row(w: Write, dialect: Dialect) -> Row:
    s = w.step
    assert s is not None
    return (
        w.claim.message_id, s.name, s.status.value, s.output, s.error, s.seconds, s.retry_count, s.retry_in_s,
        s.position, s.pid, s.cpu_seconds, s.peak_rss_bytes, exact_text(s.output, dialect),
    )  # fmt: skip


def _crash_row(message_id: int, c: Crash, raw: bytes) -> Row:
    return (message_id, c.step, c.position, c.pid, c.cpu_seconds, c.peak_rss_bytes, raw)


# Claiming


def _claim(tx: Transaction, wanted: Wanted) -> list[Row]:
    after_vt, after_id = wanted.after or (DAWN[tx.dialect], 0)
    return tx.run(
        "claim",
        queue_id=wanted.queue_id,
        consumer_id=wanted.consumer_id,
        read_ct_max=wanted.read_ct_max,
        limit=wanted.limit,
        after_vt=after_vt,
        after_id=after_id,
    )


def _taken(tx: Transaction, wanted: Wanted, rows: list[Row]) -> Taken:
    """With the lapsed, where they are wanted, and the history of those who have one."""
    if wanted.lapsed and len(rows) < wanted.limit:
        lapsed = tx.run(
            "claim_lapsed",
            queue_id=wanted.queue_id,
            consumer_id=wanted.consumer_id,
            read_ct_max=wanted.read_ct_max,
            limit=wanted.limit - len(rows),
        )
    else:
        lapsed = []
    history = _history(tx, [(r[0],) for r in rows + lapsed if r[5]])
    return _as_taken(wanted, rows, history, lapsed)


def _as_taken(
    wanted: Wanted, rows: list[Row], history: "dict[int, _Begun]", lapsed: Sequence[Row] = ()
) -> Taken:
    rows.sort(key=lambda r: (r[4], r[0]))
    messages = []
    for message_id, claim_no, read_ct, payload, _, _ in [*rows, *lapsed]:
        claim = Claim(message_id, wanted.consumer_id, claim_no)
        status, attempt, crash_count, age_s, steps = history.get(message_id, (None, 0, 0, None, []))
        messages.append(
            Claimed(claim, _raw(payload) or b"", read_ct, status, attempt, crash_count, tuple(steps), age_s)
        )
    return Taken(wanted, messages, (rows[-1][4], rows[-1][0]) if rows else wanted.after)


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
