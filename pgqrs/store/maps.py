"""Maps in the database: their input, the ranges of items that supervisors claim, and the outcomes."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import msgspec
from msgspec import Struct

from pgqrs import errors
from pgqrs.model import maps
from pgqrs.model.maps import Line, Segment
from pgqrs.model.states import WorkflowStatus
from pgqrs.model.writes import Range, RecordedStep, Write
from pgqrs.store.database import Database, Row, Transaction
from pgqrs.store.encoding import encoded
from pgqrs.store.rows import read_count, read_text

RUNNING, FAILED, CANCELLED = "RUNNING", "FAILED", "CANCELLED"
# The rows that are read at once.
PAGE = 16


# Of supervisors


class Item(Struct, frozen=True):
    """The outcome of an item of a map, or a failed attempt."""

    map_id: int
    consumer_id: int
    line: Line
    retry_in_s: float | None


def _items(writes: Sequence[Write], places: dict[int, tuple[int, int]]) -> list[Item]:
    """`places`: the first item of each message's range, and the map."""
    return [
        Item(
            places[w.claim.message_id][1],
            w.claim.consumer_id,
            maps.line_of(places[w.claim.message_id][0], w.item),
            w.item.retry_in_s,
        )
        for w in writes
        if w.item is not None and w.claim.message_id in places
    ]


def save(tx: Transaction, writes: Sequence[Write], apart: bool) -> dict[int, str]:
    """Writes the outcomes of items and cuts ranges. Returns for each message whether its map still
    runs: RUNNING or CANCELLING.

    `apart`: the outcomes may have been written before, together with others. Each is a row of its
    own then, because a row of several could be there in part.
    """
    ids = sorted({(w.claim.message_id,) for w in writes})
    places = {
        m: (first, map_id)
        for m, map_id, first, _ in tx.run("range_places", ids)
        if isinstance(first, int) and isinstance(map_id, int)
    }
    items = _items(writes, places)
    ended = sorted((i for i in items if i.retry_in_s is None), key=lambda i: (i.map_id, i.line.item))
    if ended:
        _save_outcomes(tx, ended, apart)
    if tried := {(i.map_id, i.line.item): i for i in items if i.retry_in_s is not None}:
        done = {(i.map_id, i.line.item) for i in ended}
        rows = [
            (map_id, item, i.line.attempts - 1, encoded(i.line.value, tx.dialect), i.retry_in_s)
            for (map_id, item), i in sorted(tried.items())
            if (map_id, item) not in done
        ]
        if rows:
            tx.run("save_tries", rows)
    if again := sorted({(i.map_id, i.line.item) for i in ended if i.line.attempts > 1}):
        tx.run("drop_tries", again)
    # Of several cuts of one range the later ones come first: each cuts off what is behind it.
    for message_id, at in sorted(
        {(w.claim.message_id, w.cut) for w in writes if w.cut is not None}, key=lambda c: -c[1]
    ):
        _cut(tx, message_id, at)
    return dict(tx.run("range_states", ids))


def _cut(tx: Transaction, message_id: int, at: int) -> None:
    for (tail_id,) in tx.run("cut_range", message_id=message_id, at=at):
        tx.run("place_tail", tail_id=tail_id, message_id=message_id, at=at)
        tx.run("shorten_range", message_id=message_id, at=at)


def _save_outcomes(tx: Transaction, ended: Sequence[Item], apart: bool) -> None:
    runs = [[i] for i in ended] if apart else list(_consecutive(ended))
    rows: list[Row] = []
    of: dict[tuple[int, int], tuple[int, float]] = {}
    for run in runs:
        segment = maps.written([i.line for i in run])
        rows.append(_row(run[0].map_id, segment, tx))
        of[run[0].map_id, segment.first] = run[0].consumer_id, sum(i.line.seconds for i in run)
    parts: dict[tuple[int, int], list[float]] = {}
    for map_id, first, count, failed in tx.run("save_outcomes", rows):
        consumer_id, seconds = of[map_id, first]
        part = parts.setdefault((map_id, consumer_id), [0, 0, 0.0])
        part[0] += count - failed
        part[1] += failed
        part[2] += seconds
    if not parts:
        return
    tx.run("count_outcomes", [(*key, *part) for key, part in sorted(parts.items())])
    failing = sorted({(map_id,) for (map_id, _), part in parts.items() if part[1]})
    if failing and (over := tx.run("fail_maps", failing)):
        tx.run("drop_ranges", sorted(over))


def _row(map_id: int, s: Segment, tx: Transaction) -> Row:
    return map_id, s.first, s.count, s.failed, s.took, encoded(s.data, tx.dialect)


def _consecutive(ended: Sequence[Item]) -> Iterator[list[Item]]:
    """Splits outcomes, sorted by map and item, into those of at most SEGMENT_MAX consecutive items.
    Of two outcomes of one item the first counts.
    """
    run = [ended[0]]
    for before, after in pairwise(ended):
        if (before.map_id, before.line.item) == (after.map_id, after.line.item):
            continue
        follows = (before.map_id, before.line.item + 1) == (after.map_id, after.line.item)
        if not follows or len(run) >= maps.SEGMENT_MAX:
            yield run
            run = []
        run.append(after)
    yield run


class Opened(Struct, frozen=True):
    """What a worker needs to execute a range."""

    range: Range
    payload: bytes
    steps: list[RecordedStep]
    status: WorkflowStatus


def opened(tx: Transaction, ids: Sequence[int]) -> dict[int, Opened]:
    """Reads the items of the ranges of these messages, and which of them have ended or failed.
    Raises ValueError or TypeError for values that pgqrs does not write.
    """
    ranges = {
        m: Range(read_count(map_id), read_count(first), read_count(end))
        for m, map_id, first, end in tx.run("range_places", [(m,) for m in ids])
    }
    rows = [(m, r.map_id, r.first) for m, r in ranges.items()]
    whole = [(m, r.map_id, r.first, r.end) for m, r in ranges.items()]
    steps: dict[int, list[RecordedStep]] = {m: [] for m in ranges}
    for m, first, count in tx.run("range_outcomes", whole):
        r = ranges[m]
        start, end = read_count(first), read_count(first) + read_count(count)
        for position in range(max(start, r.first) - r.first, min(end, r.end) - r.first):
            steps[m].append(RecordedStep(f"#{position}", position, "SUCCESS", None, None, 0))
    for m, item, tries, error, overdue_s in tx.run("range_tries", whole):
        position = read_count(item) - ranges[m].first
        steps[m].append(
            RecordedStep(
                f"#{position}", position, "RETRY", None, read_text(error).encode(), read_count(tries),
                retry_in_s=max(0.0, -float(overdue_s or 0.0)),
            )
        )  # fmt: skip
    states: dict[int, str] = dict(tx.run("range_states", [(m,) for m in ranges]))
    found: dict[int, Opened] = {}
    for m, first, data in tx.run("range_inputs", rows):
        r = ranges[m]
        lines = read_text(data).split("\n")[r.first - first : r.end - first]
        payload = b'{"map":%d,"first":%d,"items":[%s]}' % (r.map_id, r.first, ",".join(lines).encode())
        found[m] = Opened(r, payload, steps[m], WorkflowStatus(states.get(m, "CANCELLING")))
    return found


# Of clients


class MapRow(Struct, frozen=True):
    """The row of a map. `age_s`: the seconds since it was created."""

    id: int
    name: str | None
    step: str
    queue_id: int
    status: str
    total: int | None
    fed: int
    tolerated: float | None
    of_share: bool
    age_s: float


class Counts(Struct, frozen=True):
    """How many items have succeeded (`done`), failed, and wait for another attempt. `seconds`: the
    time that the ended items took.
    """

    done: int
    failed: int
    seconds: float
    retrying: int


def create(
    database: Database, name: str | None, step: str, queue_id: int, tolerated: float | None, of_share: bool
) -> tuple[int, bool]:
    """Returns the id of the map with this name, and whether it is new."""
    with database.transaction() as tx:
        made = tx.run(
            "add_map", name=name, step=step, queue_id=queue_id, tolerated=tolerated, of_share=of_share
        )
        if made:
            return int(made[0][0]), True
        [(map_id, known_step)] = tx.run("map_by_name", name=name)
        if known_step != step:
            raise errors.ValidationError(
                f"the map {name!r} is of step {known_step!r}, not of {step!r}; give this map another name"
            )
        return int(map_id), False


def by_name(database: Database, name: str) -> int | None:
    with database.reading() as tx:
        found = tx.run("map_by_name", name=name)
    return int(found[0][0]) if found else None


def row(database: Database, map_id: int) -> MapRow:
    with database.reading() as tx:
        found = tx.run("map_row", id=map_id)
    if not found:
        raise errors.RunNotFoundError(f"there is no map {map_id}")
    name, step, queue_id, status, total, fed, tolerated, of_share, age_s = found[0]
    return MapRow(map_id, name, step, queue_id, status, total, fed, tolerated, bool(of_share), float(age_s))


def counts(database: Database, map_id: int) -> Counts:
    with database.reading() as tx:
        done, failed, seconds, retrying = tx.run("map_counts", id=map_id)[0]
    return Counts(int(done), int(failed), float(seconds), int(retrying))


def feed(database: Database, map_id: int, first: int, lines: Sequence[bytes]) -> bool:
    """Records the next items and enqueues them. Returns False if the map was ended meanwhile, or if
    another program has recorded items of it.
    """
    data = b"\n".join(line.replace(b"\n", b" ") for line in lines).decode()
    upto = first + len(lines)
    text = encoded(data, database.dialect)
    with database.transaction() as tx:
        if not tx.run("feed_map", id=map_id, first=first, upto=upto):
            return False
        tx.run("add_input", [(first, len(lines), text)], id=map_id)
        _enqueue(tx, map_id, [(first, upto)])
    return True


def _enqueue(tx: Transaction, map_id: int, ranges: Sequence[tuple[int, int]]) -> None:
    payload = encoded(msgspec.json.encode({"map": map_id}), tx.dialect)
    ids = sorted(i for (i,) in tx.run("add_range", [(payload,)] * len(ranges), id=map_id))
    places = [(i, first, upto) for i, (first, upto) in zip(ids, ranges, strict=True)]
    tx.run("add_places", places, id=map_id)


def end_input(database: Database, map_id: int) -> None:
    with database.transaction() as tx:
        tx.run("end_input", id=map_id)


def stop(database: Database, map_id: int, status: str) -> None:
    """Starts nothing more of the map. Supervisors stop the ranges that they have at the next item."""
    with database.transaction() as tx:
        tx.run("lock_map", id=map_id)
        tx.run("set_map_status", id=map_id, status=status)
        tx.run("archive_ranges", id=map_id)


def resume(database: Database, map_id: int, failed_too: bool) -> int:
    """Enqueues every item that has no outcome and is in no range, and returns how many items these
    are. With `failed_too`, failed items lose their outcome first.
    """
    with database.transaction() as tx:
        tx.run("lock_map", id=map_id)
        tx.run("set_map_status", id=map_id, status=RUNNING)
        if failed_too:
            _forget_failed(tx, map_id)
        segments = [(f, f + n) for f, n in tx.run("segments_of", id=map_id)]
        ended = [(f, f + n) for f, n in tx.run("outcome_ranges", id=map_id)]
        open_ = [(f, e) for f, e, _ in tx.run("open_ranges", id=map_id)]
        missing = list(maps.gaps(segments, sorted(ended + open_)))
        if missing:
            _enqueue(tx, map_id, missing)
    return sum(e - f for f, e in missing)


def _forget_failed(tx: Transaction, map_id: int) -> None:
    first = 0
    while rows := tx.run("failed_outcomes", id=map_id, first=first, limit=PAGE):
        kept: list[Segment] = []
        failed = 0
        for start, _, took, data in rows:
            good: list[Line] = []
            for line in maps.read(start, took, data):
                if not line.failed:
                    good.append(line)
                    continue
                failed += 1
                if good:
                    kept.append(maps.written(good))
                    good = []
            if good:
                kept.append(maps.written(good))
        tx.run("drop_outcomes", [(r[0],) for r in rows], id=map_id)
        if kept:
            values = [(s.first, s.count, s.failed, s.took, encoded(s.data, tx.dialect)) for s in kept]
            tx.run("put_outcomes", values, id=map_id)
        tx.run("uncount", id=map_id, failed=failed)
        first = rows[-1][0] + 1


def open_ranges(database: Database, map_id: int) -> list[tuple[int, int, bool]]:
    """The ranges that are not finished: first item, end, and whether somebody holds the range."""
    with database.reading() as tx:
        return [(f, e, bool(h)) for f, e, h in tx.run("open_ranges", id=map_id)]


def ended_since(database: Database, map_id: int, ago_s: float | None) -> list[int]:
    """The first items of the segments that were recorded in the last seconds, in the order of that;
    None: of all.
    """
    with database.reading() as tx:
        return [f for f, _ in tx.run("outcomes_since", id=map_id, ago_s=1e9 if ago_s is None else ago_s)]


def outcomes(database: Database, map_id: int, first: int, limit: int = PAGE) -> list[list[Line]]:
    """The next segments of outcomes, in the order of their items, from item `first`."""
    with database.reading() as tx:
        rows = tx.run("outcomes_from", id=map_id, first=first, limit=limit)
    return [list(maps.read(f, took, data)) for f, _, took, data in rows]


def failures(database: Database, map_id: int, first: int, limit: int = PAGE) -> list[list[Line]]:
    """The next segments with failed items, reduced to these."""
    with database.reading() as tx:
        rows = tx.run("failed_outcomes", id=map_id, first=first, limit=limit)
    return [[x for x in maps.read(f, took, data) if x.failed] for f, _, took, data in rows]


def segments_at(database: Database, map_id: int, firsts: Iterable[int]) -> list[list[Line]]:
    with database.reading() as tx:
        rows = tx.run("outcomes_at", [(f,) for f in firsts], id=map_id)
    return [list(maps.read(f, took, data)) for f, _, took, data in sorted(rows)]


def inputs(database: Database, map_id: int, first: int) -> list[str]:
    """The recorded lines of the segment that begins with item `first`; empty if there is none."""
    with database.reading() as tx:
        rows = tx.run("inputs_of", id=map_id, first=first, upto=first + 1)
    return read_text(rows[0][2]).split("\n") if rows else []


def input_of(database: Database, map_id: int, item: int) -> str:
    """The recorded line of one item."""
    with database.reading() as tx:
        [(first, _, data)] = tx.run("input_at", id=map_id, item=item)
    line: str = read_text(data).split("\n")[item - first]
    return line
