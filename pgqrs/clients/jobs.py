"""Durable jobs: a step over many items, started from outside a workflow (`store.map`)."""

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast

import msgspec
from msgspec import Struct

from pgqrs import errors
from pgqrs.arguments import durations
from pgqrs.arguments.durations import Duration
from pgqrs.flows.flow import StepDefinition
from pgqrs.model.maps import SEGMENT_BYTES_MAX, SEGMENT_MAX, Line
from pgqrs.store import maps
from pgqrs.store.maps import Counts, MapRow
from pgqrs.store.waiting import Blocking, Ways, drive, patiently
from pgqrs.values import codec

if TYPE_CHECKING:
    from pgqrs.clients.blocking import Store

R = TypeVar("R")

# The first segments are small, so that the first items begin at once.
FIRST_SEGMENT, SEGMENT_GROWS = 1, 4
POLL_MIN_S, POLL_MAX_S = 0.005, 0.25
# How often a wait in which nothing happens looks whether the items are still in the queue.
CHECK_EVERY_S = 1.0
# For how long an outcome may be invisible after the time that it carries: the longest transaction
# that records one. Outcomes that took longer are found at the end of the map.
LATE_S = 30.0
ERRORS_SHOWN = 10


class Outcome(Struct, Generic[R], frozen=True):
    """The outcome of one item. `index` counts the items from 0. `error` is the exception of the last
    of its `attempts`, or None. `seconds` is the duration of that attempt.
    """

    index: int
    value: R | None
    error: Exception | None
    attempts: int
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether the item succeeded."""
        return self.error is None


class Progress(Struct, frozen=True):
    """How far a job is. `total` is None until all of its input is recorded. `done` items have
    succeeded, `failed` ones have failed finally, and `retrying` ones wait for another attempt.
    `eta_s` is the estimated number of seconds until the end, None while it is unknown.
    """

    total: int | None
    done: int
    failed: int
    retrying: int
    eta_s: float | None = None

    @property
    def ended(self) -> int:
        """The number of items that have an outcome."""
        return self.done + self.failed

    @property
    def is_over(self) -> bool:
        """Whether every item has an outcome."""
        return self.total is not None and self.ended >= self.total

    def __str__(self) -> str:
        of = "" if self.total is None else f" of {self.total:,}"
        failed = f", {self.failed:,} failed" if self.failed else ""
        eta = (
            ""
            if self.eta_s is None or self.is_over
            else f", about {durations.text(round(self.eta_s) or 1)} left"
        )
        return f"{self.ended:,}{of} items{failed}{eta}"


class Reader(Protocol):
    """Reads the outcomes of a job in some order."""

    def next(self, is_over: bool) -> list[Line]:
        """The next outcomes that are recorded. Empty if none is yet; with `is_over`, if none is
        left.
        """


class Job(Generic[R]):
    """A step over many items: what `store.map` returns.

    Iterating over a job yields an Outcome for each item, as the items end. `results()` yields the
    values in the order of the items. Both wait for what has not ended, read by pages, and can be
    called again.
    """

    def __init__(self, store: "Store", map_id: int, step: StepDefinition) -> None:
        self._store = store
        self._step = step
        self.id = map_id
        # When this job's first progress was read, and how many items had ended then.
        self._began: tuple[float, int] | None = None

    def __repr__(self) -> str:
        return f"Job({self.id})"

    def __iter__(self) -> "Iterator[Outcome[R]]":
        """Yields the outcome of each item as it ends, including failed items. Raises MapError at the
        end if more items failed than the map tolerates, and RunCancelledError if the map was
        cancelled.
        """
        return self._yielded(self._as_completed())

    def outcomes(self) -> "Iterator[Outcome[R]]":
        """Like iterating over the job, but in the order of the items."""
        return self._yielded(self._in_order())

    def results(self) -> Iterator[R]:
        """Yields the value of each item in the order of the items. Raises MapError at the first
        failed item.
        """
        for outcome in self.outcomes():
            if outcome.error is not None:
                raise self._failed()
            yield cast(R, outcome.value)

    def failures(self) -> "Iterator[Outcome[R]]":
        """Yields the outcomes of the items that have failed so far, in the order of the items. Does
        not wait.
        """
        first = 0
        while pages := maps.failures(self._database, self.id, first):
            for page in pages:
                yield from map(self._outcome, page)
                first = page[-1].item + 1
            first = max(first, pages[-1][-1].item + 1)

    def wait(self, timeout: Duration | None = None) -> Progress:
        """Waits until every item has an outcome, and returns the counts.

        Raises MapError if more items failed than the map tolerates, RunCancelledError if it was
        cancelled, TimeoutError if `timeout` (seconds, a timedelta or text) expires first, and
        SupervisorError if this is called inside a `store.workers()` block whose supervisor has
        died. The job goes on after a TimeoutError.
        """
        return drive(self._until_over(Blocking(), timeout))

    @property
    def progress(self) -> Progress:
        """The current counts. Each access queries the database."""
        return self._progress(self._row(), self._counts())

    def cancel(self) -> None:
        """Starts no further item. Items that are executing end, and keep their outcomes. Mapping
        under the same name goes on.
        """
        maps.stop(self._database, self.id, maps.CANCELLED)

    def retry_failed(self) -> int:
        """Enqueues every item that has failed or never started, and returns their number. Items that
        have succeeded keep their outcomes.
        """
        count = maps.resume(self._database, self.id, failed_too=True)
        self._database.hint([queue_of(self._step)])
        return count

    # For both kinds of stores

    def _as_completed(self) -> Reader:
        return _AsCompleted(self)

    def _in_order(self) -> Reader:
        return _InOrder(self)

    async def _until_over(self, ways: Ways, timeout: Duration | None) -> Progress:  # noqa: ASYNC109
        deadline = None if timeout is None else time.monotonic() + durations.seconds(timeout)
        poll = _Poll()
        while True:
            progress = await self._look(ways)
            if progress.is_over:
                return progress
            if deadline is not None and time.monotonic() >= deadline:
                raise errors.TimeoutError(f"{self._told()} is not over: {progress}; is a supervisor running?")
            await poll.sleep(ways, progress.ended, deadline)
            if poll.is_time_to_check:
                await ways.call(self._refuse_lost)

    async def _next_outcomes(self, ways: Ways, reader: Reader) -> "list[Outcome[R]]":
        """Waits for the next outcomes of the reader. Empty at the end."""
        poll = _Poll()
        while True:
            # Asked before the reader: what has ended by then is there for it.
            progress = await self._look(ways)
            if lines := await ways.call(reader.next, progress.is_over):
                return await ways.call(lambda: [self._outcome(line) for line in lines])
            if progress.is_over:
                return []
            await poll.sleep(ways, progress.ended, None)
            if poll.is_time_to_check:
                await ways.call(self._refuse_lost)

    async def _look(self, ways: Ways) -> Progress:
        """Returns the counts. Raises MapError or RunCancelledError if the map has ended early."""
        self._store._refuse_without_workers()
        patience_s = self._store.config.connection_timeout_seconds
        # In this order: the outcome that ends the map makes it FAILED in the same transaction.
        counts = await patiently(ways, patience_s, lambda: ways.call(self._counts))
        row = await patiently(ways, patience_s, lambda: ways.call(self._row))
        if row.status == maps.CANCELLED:
            raise errors.RunCancelledError(f"{self._told()} was cancelled; map under its name again to go on")
        if row.status == maps.FAILED:
            raise await ways.call(self._failure, row, counts)
        return self._progress(row, counts)

    # Its own

    @property
    def _database(self) -> Any:
        return self._store.messages.database

    def _failed(self) -> errors.MapError:
        return self._failure(self._row(), self._counts())

    def _refuse_lost(self) -> None:
        """Raises InternalError if items of the job are in no queue although they have no outcome:
        somebody has deleted their messages, or they became dead letters.
        """
        if maps.open_ranges(self._database, self.id):
            return
        row, progress = self._row(), self.progress
        if row.status == maps.RUNNING and progress.total is not None and not progress.is_over:
            raise errors.InternalError(
                f"{self._told()}: {progress.total - progress.ended:,} items are in no queue, although they "
                "have no outcome: their messages were deleted or given up (see `pgqrs dead`); "
                "job.retry_failed() enqueues them again"
            )

    def _row(self) -> MapRow:
        return maps.row(self._database, self.id)

    def _counts(self) -> Counts:
        return maps.counts(self._database, self.id)

    def _yielded(self, reader: Reader) -> "Iterator[Outcome[R]]":
        while found := drive(self._next_outcomes(Blocking(), reader)):
            yield from found

    def _outcome(self, line: Line) -> "Outcome[R]":
        if line.failed:
            error = errors.rebuild(msgspec.json.decode(line.value), self._step.function)
            return Outcome(line.item, None, error, line.attempts, line.seconds)
        what = f"the result of item {line.item} of step {self._step.name!r}"
        value = codec.decode(line.value, self._step.signature.returns, what=what)
        return Outcome(line.item, value, None, line.attempts, line.seconds)

    def _progress(self, row: MapRow, counts: Counts) -> Progress:
        ended, now = counts.done + counts.failed, time.monotonic()
        if self._began is None:
            self._began = now, ended
        began, before = self._began
        eta_s = None
        if row.total is not None and before < ended < row.total:
            eta_s = (row.total - ended) * (now - began) / (ended - before)
        return Progress(row.total, counts.done, counts.failed, counts.retrying, eta_s)

    def _failure(self, row: MapRow, counts: Counts) -> errors.MapError:
        first: dict[int, Exception] = {}
        for outcome in self.failures():
            assert outcome.error is not None, "failures have errors"
            first[outcome.index] = outcome.error
            if len(first) == ERRORS_SHOWN:
                break
        shown = "".join(f"\n  item {i}: {type(e).__name__}: {e}" for i, e in first.items())
        more = f"\n  … and {counts.failed - len(first):,} more" if counts.failed > len(first) else ""
        total = "" if row.total is None else f" of {row.total:,}"
        go_on = "job.retry_failed(), or map under the same name again," if row.name else "job.retry_failed()"
        return errors.MapError(
            f"{self._told()}: {counts.failed:,}{total} items failed, {counts.done:,} are done; "
            f"{go_on} executes what is not done{shown}{more}",
            done=counts.done,
            failed=counts.failed,
            errors=first,
        )

    def _told(self) -> str:
        return f"map {self.id} of step {self._step.name!r}"


class _Poll:
    """Waits between two looks: shortly while something happens, longer while nothing does."""

    def __init__(self) -> None:
        self._wait_s = POLL_MIN_S
        self._ended = -1
        # When to look next for items that nobody has.
        self._check_at = time.monotonic() + CHECK_EVERY_S
        self.is_time_to_check = False

    async def sleep(self, ways: Ways, ended: int, deadline: float | None) -> None:
        now = time.monotonic()
        if ended != self._ended:
            self._ended, self._wait_s, self._check_at = ended, POLL_MIN_S, now + CHECK_EVERY_S
        else:
            self._wait_s = min(self._wait_s * 1.5, POLL_MAX_S)
        if is_time := now >= self._check_at:
            self._check_at = now + CHECK_EVERY_S
        self.is_time_to_check = is_time
        left_s = POLL_MAX_S if deadline is None else max(0.0, deadline - time.monotonic())
        await ways.sleep(min(self._wait_s, left_s))


class _InOrder:
    def __init__(self, job: Job[Any]) -> None:
        self._job = job
        self._next = 0

    def next(self, is_over: bool) -> list[Line]:
        found: list[Line] = []
        for page in maps.outcomes(self._job._database, self._job.id, self._next):
            if page[0].item != self._next:
                break
            found += page
            self._next = page[-1].item + 1
        return found


class _AsCompleted:
    def __init__(self, job: Job[Any]) -> None:
        self._job = job
        self._waiting: deque[int] = deque()
        self._seen: set[int] = set()
        self._looked_at: float | None = None

    def next(self, is_over: bool) -> list[Line]:
        if not self._waiting:
            self._look(whole=False)
        if not self._waiting and is_over:
            self._look(whole=True)
        taken = [self._waiting.popleft() for _ in range(min(maps.PAGE, len(self._waiting)))]
        if not taken:
            return []
        pages = {p[0].item: p for p in maps.segments_at(self._job._database, self._job.id, taken)}
        return [line for first in taken for line in pages.get(first, ())]

    def _look(self, whole: bool) -> None:
        now = time.monotonic()
        ago_s = None if whole or self._looked_at is None else now - self._looked_at + LATE_S
        self._looked_at = now
        for first in maps.ended_since(self._job._database, self._job.id, ago_s):
            if first not in self._seen:
                self._seen.add(first)
                self._waiting.append(first)


# Starting


def queue_of(step: StepDefinition) -> str:
    from pgqrs.flows.definitions import map_of

    return map_of(step).queue


def tolerated(errors_: str, tolerate: float | str | None) -> tuple[float | None, bool]:
    """Returns how many failed items are tolerated, None for any number, and whether that is a share
    of all items. Raises ValidationError.
    """
    if errors_ not in ("raise", "collect"):
        raise errors.ValidationError(f'errors={errors_!r} is not a choice: "raise" or "collect"')
    if tolerate is None:
        return (0.0 if errors_ == "raise" else None), False
    if isinstance(tolerate, str):
        number = tolerate.removesuffix("%")
        try:
            share = float(number) / 100
        except ValueError:
            share = -1.0
        if number == tolerate or not 0 <= share <= 1:
            raise errors.ValidationError(f'tolerate={tolerate!r} is no share: write it like "1%"')
        return share, True
    if isinstance(tolerate, bool) or not isinstance(tolerate, int) or tolerate < 0:
        raise errors.ValidationError(f'tolerate={tolerate!r} is no number of items, nor a share like "1%"')
    return float(tolerate), False


def start(
    store: "Store",
    step: StepDefinition,
    calls: Iterable[Sequence[Any]],
    name: str | None,
    errors_: str,
    tolerate: float | str | None,
) -> Job[Any]:
    """Creates the map, or finds the one with this name, and records its input."""
    most, of_share = tolerated(errors_, tolerate)
    if name is not None and (not name or len(name) > 200 or not name.isprintable()):
        raise errors.ValidationError(f"{name!r} cannot name a map: 1 to 200 printable characters")
    queue, database = queue_of(step), store.messages.database
    map_id, is_new = maps.create(database, name, step.name, store._queue(queue), most, of_share)
    job: Job[Any] = Job(store, map_id, step)
    row = maps.row(database, map_id)
    if not is_new:
        maps.resume(database, map_id, failed_too=row.status == maps.FAILED)
        database.hint([queue])
    if row.total is None:
        try:
            _feed(store, job, calls, row.fed, queue)
        except _Ended:
            # Too many items have failed already, or somebody has cancelled the map. Waiting says so.
            return job
        except Exception:
            # What has ended keeps its outcome. The same name goes on.
            maps.stop(database, map_id, maps.CANCELLED)
            raise
        maps.end_input(database, map_id)
    return job


class _Ended(Exception):
    """The map has ended before its input."""


def _feed(store: "Store", job: Job[Any], calls: Iterable[Sequence[Any]], fed: int, queue: str) -> None:
    """Records the input. The first `fed` items are recorded already, and compared."""
    database, limit = store.messages.database, store.config.max_payload_size_bytes
    known: deque[str] = deque()
    first, most = fed, FIRST_SEGMENT
    lines: list[bytes] = []
    size = 0
    count = 0
    for count, args in enumerate(calls, 1):
        try:
            line = job._step.signature.encode_payload(args, {}, limit)
        except (errors.ValidationError, errors.SerializationError) as e:
            raise type(e)(f"item {count - 1} of the map, counted from 0: {e}") from e
        if count <= fed:
            known = known or deque(maps.inputs(database, job.id, count - 1))
            if (before := known.popleft()) != line.replace(b"\n", b" ").decode():
                raise errors.ReplayMismatchError(
                    f"{job._told()}: item {count - 1} is {line.decode()[:100]}, and was {before[:100]} when "
                    "the map was begun; give the same items again, or give this map another name"
                )
            continue
        lines.append(line)
        size += len(line)
        if len(lines) >= most or size >= SEGMENT_BYTES_MAX:
            first, size, most = (
                _fed(store, job, first, lines, queue),
                0,
                min(most * SEGMENT_GROWS, SEGMENT_MAX),
            )
            lines = []
    if count < fed:
        raise errors.ReplayMismatchError(
            f"{job._told()} has {fed:,} recorded items, and was given {count:,}; give the same items again, "
            "or give this map another name"
        )
    if lines:
        _fed(store, job, first, lines, queue)


def _fed(store: "Store", job: Job[Any], first: int, lines: Sequence[bytes], queue: str) -> int:
    database = store.messages.database
    if not maps.feed(database, job.id, first, lines):
        if maps.row(database, job.id).status != maps.RUNNING:
            raise _Ended
        raise errors.ConflictError(f"another program gives items to {job._told()} at the same time")
    database.hint([queue])
    return first + len(lines)
