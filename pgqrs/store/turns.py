"""A supervisor's turn: one transaction with the writes of its runs, and with claims.

The first statement is the fence. It locks the messages that the writes concern, and returns those
whose claim is still live. Nothing is written for any other message.

Each statement waits for the answer of the previous one. A pipeline would save this wait. But
PostgreSQL runs no timeout while it waits for more of a pipeline. If a supervisor were stopped in
the middle, it would keep its locks, and nobody could take over from it.
`idle_in_transaction_session_timeout` only counts after an answer.
"""

import time
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from pgqrs import errors
from pgqrs.model.recorded_error import RecordedError
from pgqrs.model.states import WorkflowStatus
from pgqrs.model.turns import Mark, Taken, Turn, Want, Watermark
from pgqrs.model.writes import (
    Archive,
    Claim,
    Claimed,
    Crash,
    Outcome,
    Place,
    RecordedStep,
    Release,
    Settle,
    Step,
    Write,
)
from pgqrs.store import maps
from pgqrs.store.database import Database, Row, Transaction
from pgqrs.store.encoding import encoded
from pgqrs.store.postgresql.jsonb import exact_text
from pgqrs.store.rows import read_count, read_fingerprint, read_json, read_seconds, read_text
from pgqrs.store.sql import DAWN, Dialect

# The time in a turn for finding the writes that meet a lock. The remaining writes are put off untested.
APART_S = 1.0


def turn(
    database: Database, writes: Sequence[Write], wanted: Sequence[Want] = (), unsure: bool = False
) -> Turn:
    """Executes one transaction: the writes, ordered by kind, and then the claims, which can take
    what the writes released. Without writes, each claim on a server commits by itself.

    If the database refuses a value, the writes are repeated one by one, so that the value affects
    only its own run. Nothing more is written for that claim. If the refusal has another cause, such
    as a missing privilege, the error is raised and affects no run. If a write meets a lock of
    another session, the writes are executed in parts, and those that meet the lock are put off.

    `unsure` means that these writes may have been committed before. If an ended message still has
    its claim, its write then counts as applied.
    """
    ready, unfit = _made_ready(writes, database.dialect)
    try:
        done = _turn(database, ready, wanted, unsure)
    except errors.DatabaseError as e:
        if not e.refuses_value:
            raise
        done = _with_claims(database, _one_by_one(database, ready, unsure), wanted)
    except errors.PgqrsConnectionError as e:
        if not ready or not _is_lock(e):
            raise
        done = _with_claims(database, _in_parts(database, ready, unsure), wanted)
    done = Turn(done.outcomes + unfit, done.taken, done.put_off) if unfit else done
    assert len(done.outcomes) + len(done.put_off) == len(writes), "a write has an outcome or is put off"
    assert len(done.taken) == len(wanted), "each claim is answered"
    return done


def _with_claims(database: Database, done: Turn, wanted: Sequence[Want]) -> Turn:
    return Turn(done.outcomes, [_contained(database, w) for w in wanted], done.put_off)


def _one_by_one(database: Database, writes: "Sequence[Ready]", unsure: bool) -> Turn:
    """Executes writes one by one. If a write is refused, later writes of the same claim are not
    executed, because the run would miss a step. If a write is put off, later writes of the same
    claim are put off too.
    """
    outcomes: list[Outcome] = []
    put_off: list[Write] = []
    late: set[Claim] = set()
    refused: dict[Claim, str] = {}
    for write in writes:
        claim = write.write.claim
        if claim in late:
            put_off.append(write.write)
        elif claim in refused:
            outcomes.append(Outcome(write.write, applied=False, failure=refused[claim]))
        else:
            done = _alone(database, write, unsure)
            outcomes += done.outcomes
            put_off += done.put_off
            late.update(w.claim for w in done.put_off)
            refused.update({o.write.claim: o.failure for o in done.outcomes if o.failure is not None})
    return Turn(outcomes, [], put_off)


def _contained(database: Database, wanted: Want) -> Taken:
    """Claims from a queue although the database may refuse one of its messages. Makes the claim
    smaller, and in the end gives that message up.
    """
    while True:
        try:
            return _turn(database, (), [wanted], False).taken[0]
        except errors.DatabaseError as e:
            if wanted.polls or not e.refuses_value:
                raise
            if wanted.limit <= 1:
                _give_up_oldest(database, wanted, str(e))
                return Taken(wanted, [], None)
            wanted = replace(wanted, limit=wanted.limit // 2, first=0, lapsed=False, after=None)


def _give_up_oldest(database: Database, wanted: Want, why: str) -> None:
    reason = f"the database refused to hand it out: {why}"[:500]
    error = RecordedError("NON_RETRYABLE", "pgqrs.errors.DatabaseError", reason).encode()
    with database.transaction() as tx:
        found = tx.run(
            "ready",
            queue_id=wanted.queue_id,
            read_ct_max=wanted.read_ct_max,
            limit=1,
            after_vt=DAWN[tx.dialect],
            after_id=0,
        )
        if found:
            tx.run("settle_runs", [(found[0][0], WorkflowStatus.Error.value, None, error)])
            tx.run("archive", [(found[0][0], reason)])


def _alone(database: Database, ready: "Ready", unsure: bool) -> Turn:
    try:
        return _turn(database, (ready,), (), unsure)
    except errors.DatabaseError as e:
        if not e.refuses_value:
            raise
        return Turn([Outcome(ready.write, applied=False, failure=str(e))], [])
    except errors.PgqrsConnectionError as e:
        if not _is_lock(e):
            raise
        return Turn([], [], [ready.write])


def _in_parts(database: Database, writes: "Sequence[Ready]", unsure: bool) -> Turn:
    """Executes writes in parts. Each part that meets a lock is halved, down to single writes."""
    outcomes: list[Outcome] = []
    put_off: list[Write] = []
    # Claims with a write that was put off. Their later writes wait for it.
    late: set[Claim] = set()
    until = time.monotonic() + APART_S
    parts = [writes[len(writes) // 2 :], writes[: len(writes) // 2]]
    while parts:
        part = parts.pop()
        refused = {o.write.claim: o.failure for o in outcomes if o.failure is not None}
        outcomes += [
            Outcome(r.write, False, failure=refused[r.write.claim]) for r in part if r.write.claim in refused
        ]
        put_off += [r.write for r in part if r.write.claim in late]
        free = [r for r in part if r.write.claim not in late and r.write.claim not in refused]
        try:
            done = _turn(database, free, (), unsure) if time.monotonic() < until else None
        except errors.DatabaseError as e:
            if not e.refuses_value:
                raise
            done = _one_by_one(database, free, unsure)
        except errors.PgqrsConnectionError as e:
            if not _is_lock(e):
                raise
            if len(free) > 1:
                parts += [free[len(free) // 2 :], free[: len(free) // 2]]
                continue
            done = None
        if done is None:
            done = Turn([], [], [r.write for r in free])
        outcomes += done.outcomes
        put_off += done.put_off
        late.update(w.claim for w in done.put_off)
    return Turn(outcomes, [], put_off)


def _is_lock(error: BaseException) -> bool:
    """Whether PostgreSQL ended a wait for another session's lock. See {wait briefly} in `sql.py`."""
    return getattr(error.__cause__, "sqlstate", None) == LOCK_NOT_AVAILABLE


LOCK_NOT_AVAILABLE = "55P03"


def _turn(database: Database, writes: "Sequence[Ready]", wanted: Sequence[Want], unsure: bool) -> Turn:
    if writes:
        with database.transaction() as tx:
            return _carry_out(tx, writes, wanted, unsure)
    return Turn([], _claims_alone(database, wanted))


def carry_out(
    tx: Transaction, writes: Sequence[Write] = (), wanted: Sequence[Want] = (), unsure: bool = False
) -> Turn:
    """Executes writes and claims in the caller's transaction. Skips writes whose claim is not live."""
    ready, unfit = _made_ready(writes, tx.dialect)
    done = _carry_out(tx, ready, wanted, unsure)
    return Turn(done.outcomes + unfit, done.taken, done.put_off)


def _carry_out(tx: Transaction, writes: "Sequence[Ready]", wanted: Sequence[Want], unsure: bool) -> Turn:
    outcomes: list[Outcome] = []
    put_off: list[Write] = []
    if writes and not unsure and _only_archives(writes):
        outcomes = _archive(tx, writes)
    elif writes:
        outcomes, put_off = _fenced(tx, writes, unsure)
    taken = _looked(tx, wanted) + [_claimed(tx, w) for w in wanted if not w.polls]
    return Turn(outcomes, taken, put_off)


def _only_archives(writes: "Sequence[Ready]") -> bool:
    """Whether all writes only archive messages, as the ends of handlers do. A write may also note
    that its handler has begun, if the handler has ended in this turn.
    """
    ended: set[Claim] = set()
    begun: set[Claim] = set()
    for ready in writes:
        w = ready.write
        if w.begin or w.step or w.item or w.cut or w.crash or w.settle or isinstance(w.message, Release):
            return False
        (begun if w.message is None else ended).add(w.claim)
    return begun <= ended


def _archive(tx: Transaction, writes: "Sequence[Ready]") -> list[Outcome]:
    reasons = {
        r.write.claim: r.write.message.dead_reason for r in writes if isinstance(r.write.message, Archive)
    }
    rows = sorted((c.message_id, c.consumer_id, c.claim_no, reason) for c, reason in reasons.items())
    done = set(tx.run("archive_held", rows))
    return [Outcome(r.write, _key(r.write) in done) for r in writes]


def _fenced(tx: Transaction, writes: "Sequence[Ready]", unsure: bool) -> tuple[list[Outcome], list[Write]]:
    claims = sorted(
        {(w.claim.message_id, w.claim.consumer_id, w.claim.claim_no) for w in (r.write for r in writes)}
    )
    ours = set(tx.run("fence", claims))
    missing = [c for c in claims if (c[0], c[2]) not in ours]
    # A row lock of another session can hide a row from the fence. Only PostgreSQL has row locks.
    locked = set(tx.run("still_held", missing)) if missing and tx.dialect == "postgres" else set()
    ended = {(m, n): s for m, n, s in tx.run("archived_by", claims)} if unsure else {}
    keyed = [(_key(r.write), r) for r in writes]
    status_of = _write(tx, [r for key, r in keyed if key in ours], unsure)
    outcomes: list[Outcome] = []
    put_off: list[Write] = []
    for key, r in keyed:
        if key in ours:
            outcomes.append(Outcome(r.write, True, _STATUS[status_of.get(key[0])]))
        elif key in locked:
            put_off.append(r.write)
        else:
            outcomes.append(Outcome(r.write, key in ended, _STATUS[ended.get(key)]))
    return outcomes, put_off


_STATUS: dict[str | None, WorkflowStatus | None] = {s.value: s for s in WorkflowStatus} | {None: None}


def _key(w: Write) -> tuple[int, int]:
    return w.claim.message_id, w.claim.claim_no


# Preparation before a transaction: everything that takes time in proportion to the values' size


class Ready(Struct, frozen=True):
    """A write with its encoded values."""

    write: Write
    step: Row | None = None
    settle: Row | None = None


def _made_ready(writes: Sequence[Write], dialect: Dialect) -> tuple[list[Ready], list[Outcome]]:
    """Encodes the values of the writes. Returns the encoded writes, and the outcomes of writes
    whose values are not UTF-8.
    """
    ready: list[Ready] = []
    unfit: list[Outcome] = []
    for w in writes:
        if unfit and any(o.write.claim == w.claim for o in unfit):
            unfit.append(Outcome(w, applied=False, failure="a value before it is not UTF-8"))
            continue
        try:
            step = None if w.step is None else _step_row(w.claim, w.step, dialect)
            settle = None if w.settle is None else _settle_row(w.claim, w.settle, dialect)
            ready.append(Ready(w, step, settle))
        except UnicodeError as e:
            unfit.append(Outcome(w, applied=False, failure=f"a value is not UTF-8: {e}"))
    return ready, unfit


def _step_row(claim: Claim, s: Step, dialect: Dialect) -> Row:
    exact = exact_text(s.output, dialect)
    return (
        claim.message_id, s.name, s.status.value, encoded(s.output, dialect), encoded(s.error, dialect),
        s.seconds, s.retry_count, s.retry_in_s, s.position, s.pid, s.cpu_seconds, s.peak_rss_bytes,
        encoded(exact, dialect), *_place_row(s.place), s.ended,
    )  # fmt: skip


def _settle_row(claim: Claim, s: Settle, dialect: Dialect) -> Row:
    return claim.message_id, s.status.value, encoded(s.output, dialect), encoded(s.error, dialect)


# Writes


def _write(tx: Transaction, live: Sequence[Ready], unsure: bool) -> dict[int, str]:
    """Executes the parts of the writes by kind, runs before messages. Returns the runs' statuses
    afterwards; of a range of a map, whether the map still runs.
    """
    if not live:
        return {}
    writes = [r.write for r in live]
    settled = {r.settle[0]: r.settle for r in live if r.settle}
    states: dict[int, str] = {}
    if begun := {
        w.claim.message_id: _begin_row(w, settled.get(w.claim.message_id)) for w in writes if w.begin
    }:
        states.update(tx.run("begin_runs", begun.values()))
    if steps := {(r.write.claim.message_id, r.step[1]): r.step for r in live if r.step}:
        tx.run("save_steps", steps.values())
    if forgiven := sorted({(w.claim.message_id,) for w in writes if w.forgives}):
        tx.run("forgive_crashes", forgiven)
    if crashed := {w.claim.message_id: (w.crash, msgspec.json.encode(w.crash)) for w in writes if w.crash}:
        tx.run("crash_runs", [(m, c.crash_count, raw) for m, (c, raw) in crashed.items()])
        if stepped := [_crash_row(m, c, raw) for m, (c, raw) in crashed.items() if c.step]:
            tx.run("crash_steps", stepped)
    if settled:
        states.update(tx.run("settle_runs", settled.values()))
    # The statuses are read here and not by the fence: after waiting for a lock, a statement still
    # sees the old rows of other tables.
    if of_maps := [w for w in writes if w.item or w.cut is not None]:
        states.update(maps.save(tx, of_maps, apart=unsure))
    if untold := sorted({w.claim.message_id for w in writes}.difference(states)):
        states.update(tx.run("run_states", [(m,) for m in untold]))
    left = {w.claim.message_id: w.message for w in writes if w.message}
    if delivered := sorted(
        {(w.claim.message_id,) for w in writes if w.delivers and w.claim.message_id not in left}
    ):
        tx.run("note_handlers", delivered)
    if released := {m: r for m, r in left.items() if isinstance(r, Release)}:
        tx.run("release", [(m, r.delay_s, r.refund) for m, r in released.items()])
    if archived := {m: a.dead_reason for m, a in left.items() if isinstance(a, Archive)}:
        tx.run("archive", archived.items())
    return states


def _begin_row(w: Write, settled: Row | None) -> Row:
    """Returns the row that begins a run. `settled` is its final status, if it ends in the same turn."""
    b = w.begin
    assert b is not None
    ending = settled[1:] if settled is not None and settled[1] in _ENDED else (None, None, None)
    return b.workflow_id, w.claim.message_id, w.claim.consumer_id, b.attempt, *ending


_ENDED = {s.value for s in WorkflowStatus if s.terminal}


def _place_row(place: Place | None) -> Row:
    return (None, None, None) if place is None else (place.path, place.count, place.fingerprint)


def _crash_row(message_id: int, c: Crash, raw: bytes) -> Row:
    return (message_id, c.step, c.position, c.pid, c.cpu_seconds, c.peak_rss_bytes, raw)


# Claims


def _claims_alone(database: Database, wanted: Sequence[Want]) -> list[Taken]:
    """Executes claims without writes. On a server each claim commits by itself; on a file all
    claims are one transaction.
    """
    taken: list[Taken] = []
    due = [w for w in wanted if not w.polls]
    if len(due) < len(wanted):
        with database.reading() as tx:
            taken = _looked(tx, wanted)
    if database.dialect == "postgres":
        taken += [_claim_alone(database, w) for w in due]
    elif due:
        with database.transaction() as tx:
            taken += [_claimed(tx, w) for w in due]
    return taken


def _looked(tx: Transaction, wanted: Sequence[Want]) -> list[Taken]:
    """Checks, with one statement, all queues in which no message is expected."""
    looks = [w for w in wanted if w.polls]
    if not looks:
        return []
    rows = tx.run("ready_queues", [(w.queue_id,) for w in looks], read_ct_max=looks[0].read_ct_max)
    ready = {q for (q,) in rows}
    return [Taken(w, [], w.after, w.queue_id in ready) for w in looks]


def _claim_alone(database: Database, wanted: Want) -> Taken:
    if wanted.lapsed or wanted.first:
        with database.transaction() as tx:
            return _claimed(tx, wanted)
    with database.single() as tx:
        rows = _claim(tx, wanted, wanted.limit)
    if not wanted.of_map and not any(r[5] for r in rows):
        return _as_taken(wanted, [], [], rows, {}, {})
    with database.reading() as tx:
        return _as_taken(wanted, [], [], rows, _history(tx, rows), _ranges(tx, wanted, rows))


def _claimed(tx: Transaction, wanted: Want) -> Taken:
    """Claims messages: first those that go first, then due ones, and then expired ones if there is
    room. Also reads the history of their runs.
    """
    lapsed = _claim_lapsed(tx, wanted, wanted.first) if wanted.lapsed and wanted.first else []
    left = wanted.first - len(lapsed)
    again = _claim(tx, wanted, left, again=True) if left > 0 else []
    left = wanted.limit - len(lapsed) - len(again)
    rows = _claim(tx, wanted, left) if left > 0 else []
    left -= len(rows)
    if left > 0 and wanted.lapsed and len(lapsed) == wanted.first:
        lapsed += _claim_lapsed(tx, wanted, left)
    every = lapsed + again + rows
    return _as_taken(wanted, lapsed, again, rows, _history(tx, every), _ranges(tx, wanted, every))


def _claim(tx: Transaction, wanted: Want, limit: int, again: bool = False) -> list[Row]:
    place = wanted.after and (wanted.after.again if again else wanted.after.fresh)
    after_vt, after_id = place or (DAWN[tx.dialect], 0)
    rows = tx.run(
        "claim_again" if again else "claim",
        queue_id=wanted.queue_id,
        consumer_id=wanted.consumer_id,
        read_ct_max=wanted.read_ct_max,
        limit=limit,
        after_vt=after_vt,
        after_id=after_id,
    )
    rows.sort(key=lambda r: (r[4], r[0]))
    return rows


def _claim_lapsed(tx: Transaction, wanted: Want, limit: int) -> list[Row]:
    return tx.run(
        "claim_lapsed",
        queue_id=wanted.queue_id,
        consumer_id=wanted.consumer_id,
        read_ct_max=wanted.read_ct_max,
        limit=limit,
    )


def _as_taken(
    wanted: Want,
    lapsed: list[Row],
    again: list[Row],
    rows: list[Row],
    history: "dict[int, _Begun | str]",
    ranges: "dict[int, maps.Opened | str]",
) -> Taken:
    messages = [
        _as_claimed(wanted, r, history.get(r[0]))
        if not wanted.of_map
        else _as_range(wanted, r, ranges.get(r[0], "its items are not in the database"))
        for r in [*lapsed, *again, *rows]
    ]
    if not again and not rows:
        return Taken(wanted, messages, wanted.after)
    before = wanted.after or Watermark()
    after = Watermark(_last(rows) or before.fresh, _last(again) or before.again)
    return Taken(wanted, messages, after)


def _as_claimed(wanted: Want, row: Row, begun: "_Begun | str | None") -> Claimed:
    message_id, claim_no, read_ct, payload, *_ = row
    claim = Claim(message_id, wanted.consumer_id, claim_no)
    try:
        if isinstance(begun, str):
            raise ValueError(begun)
        if not isinstance(payload, bytes | str):
            raise ValueError(f"its payload is {payload!r}"[:200])
        if not isinstance(read_ct, int):
            raise ValueError(f"its read_ct is {read_ct!r}"[:200])
        given = read_json(payload) or b""
    except ValueError as e:  # includes UnicodeError
        return Claimed(claim, b"", 0, unreadable=f"a row in the database cannot be read: {e}")
    status, attempt, crash_count, age_s, steps = begun or (None, 0, 0, None, [])
    return Claimed(claim, given, read_ct, status, attempt, crash_count, tuple(steps), age_s)


def _as_range(wanted: Want, row: Row, opened: "maps.Opened | str") -> Claimed:
    message_id, claim_no, read_ct, *_ = row
    claim = Claim(message_id, wanted.consumer_id, claim_no)
    if isinstance(opened, str):
        return Claimed(claim, b"", 0, unreadable=f"a row in the database cannot be read: {opened}")
    steps = tuple(opened.steps)
    return Claimed(claim, opened.payload, read_ct, opened.status, steps=steps, range=opened.range)


def _ranges(tx: Transaction, wanted: Want, rows: Sequence[Row]) -> "dict[int, maps.Opened | str]":
    """Returns the items of ranges by message. A text instead says why they cannot be used."""
    ids = [r[0] for r in rows]
    if not wanted.of_map or not ids:
        return {}
    try:
        return dict(maps.opened(tx, ids))
    except (ValueError, TypeError):  # includes UnicodeError
        pass
    found: dict[int, maps.Opened | str] = {}
    for message_id in ids:
        try:
            found.update(maps.opened(tx, [message_id]))
        except (ValueError, TypeError) as e:
            found[message_id] = str(e)[:200]
    return found


def _last(rows: list[Row]) -> Mark | None:
    return (rows[-1][4], rows[-1][0]) if rows else None


_Begun = tuple[WorkflowStatus, int, int, float | None, list[RecordedStep]]


def _history(tx: Transaction, rows: Sequence[Row]) -> dict[int, _Begun | str]:
    """Returns the history of each run by its message. If the rows of a run cannot be used, there is
    a text instead that says why.
    """
    found: dict[int, _Begun] = {}
    wrong: dict[int, str] = {}
    ids = [(r[0],) for r in rows if r[5]]
    for message_id, status, attempt, crashes, age_s, *step in tx.run("history", ids) if ids else ():
        try:
            if message_id not in found:
                run = (
                    WorkflowStatus(status),
                    read_count(attempt),
                    read_count(crashes),
                    read_seconds(age_s),
                    list[RecordedStep](),
                )
                found[message_id] = run
            if step[0] is not None:
                steps = found[message_id][4]
                steps.append(_recorded(step, len(steps)))
        except (ValueError, TypeError) as e:
            wrong[message_id] = str(e)[:200]
    return found | wrong


def _recorded(row: Sequence[Any], count: int) -> RecordedStep:
    """Converts a row to a step. `count` is the number of the run's steps before it."""
    name, position, status, output, error, retries, path, place, fingerprint, ended, overdue_s = row
    return RecordedStep(
        read_text(name),
        # 0.15 does not number steps.
        count if position is None else read_count(position),
        read_text(status),
        read_json(output),
        read_json(error),
        read_count(retries),
        None if path is None else Place(read_text(path), read_count(place), read_fingerprint(fingerprint)),
        None if ended is None else read_count(ended),
        max(0.0, -(read_seconds(overdue_s) or 0.0)) if status == "RETRY" else 0.0,
    )
