"""A range of a map in a worker: one step called for each item, one item after another.

An item is to its range what a step is to a run: its outcome is recorded once, and an item with an
outcome is not executed again. Unlike a step, it does not wait until the items before it are
durable. A failed item that is tried again lets the others go first.
"""

import heapq
from typing import Protocol, cast

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from pgqrs import errors
from pgqrs.flows.flow import Attempt, Context, Refused, StepDefinition, Suspended, leaves, running_in
from pgqrs.flows.scope import StepCall, current
from pgqrs.model.states import WorkflowStatus
from pgqrs.model.writes import RecordedStep, Step


class Journal(Protocol):
    """The receiver of the outcomes of a range."""

    # The number of the first item, counted from the range's first one, that is no longer the
    # range's. It may become smaller at any time, but not smaller than the item that has begun last.
    end: int

    def begin(self, call: StepCall) -> bool:
        """Returns when the item may start, or False if the item is no longer the range's. Raises
        Suspended if the range leaves its worker.
        """

    def record(self, step: Step) -> None:
        """Accepts an outcome. With `retry_in_s` the range leaves the worker: raises Suspended."""

    def tried(self, step: Step) -> None:
        """Accepts a failed attempt of an item that is tried again in this worker."""


class Payload(Struct):
    """The items of a range: each the payload of a call of the step."""

    map: int
    first: int
    items: list[msgspec.Raw]


_payloads = msgspec.json.Decoder(Payload)


def execute(step: StepDefinition, context: Context, payload: bytes) -> bytes:
    """Executes the items that have no outcome, and returns JSON null. Raises Suspended if the range
    leaves its worker before its end, and Refused if the payload is no range.
    """
    with running_in(context):
        try:
            given = _payloads.decode(payload)
            _Items(step, context, given).execute()
        except Suspended:
            context.suspended = True
            raise
        except BaseException as e:
            if leaves(e):
                raise
            raise Refused(e) from e
    return b"null"


class _Items:
    def __init__(self, step: StepDefinition, context: Context, given: Payload) -> None:
        context.of_map = given.map, given.first
        self._step = step
        self._context = context
        self._items = given.items
        self._first = given.first
        self._journal = cast(Journal, context.journal)
        self._journal.end = min(self._journal.end, len(given.items))
        self._known = {s.position for s in context.history.steps}
        now_s = context.clocks.now_s()
        # Failed attempts of items that are tried again: when, the item, and the attempt.
        self._waiting = [
            (now_s + s.retry_in_s, s.position, self._as_failed(s))
            for s in context.history.steps
            if s.status == "RETRY"
        ]
        heapq.heapify(self._waiting)

    def execute(self) -> None:
        position = 0
        while True:
            now_s = self._context.clocks.now_s()
            # A range that was cut may have had them.
            while self._waiting and self._waiting[0][1] >= self._journal.end:
                heapq.heappop(self._waiting)
            if self._waiting and self._waiting[0][0] <= now_s:
                _, again, failed = heapq.heappop(self._waiting)
                self._attempt(again, failed.retry_count)
            elif position < self._journal.end:
                position += 1
                if position - 1 not in self._known:
                    self._attempt(position - 1, 0)
            elif self._waiting:
                due_s, _, failed = self._waiting[0]
                self._journal.record(replace(failed, retry_in_s=max(0.0, due_s - now_s)))
            else:
                return

    def _attempt(self, position: int, tried: int) -> None:
        step, context = self._step, self._context
        retry_in_s = None if step.retry is None else context.retry_in_s(step.retry, tried)
        call = StepCall(
            self._name(position),
            position,
            True,
            step.timeout_s,
            tried,
            retry_in_s,
            step.memory_bytes,
            step.name,
        )
        if not self._journal.begin(call):
            return
        attempt = Attempt(context, step, call)
        done = self._called(attempt, call)
        if done.retry_in_s is None:
            self._journal.record(done)
        else:
            self._journal.tried(done)
            due_s = context.clocks.now_s() + done.retry_in_s
            heapq.heappush(self._waiting, (due_s, position, done))

    def _called(self, attempt: Attempt, call: StepCall) -> Step:
        try:
            args, kwargs = self._step.signature.decode_payload(bytes(self._items[call.position]))
        except errors.PgqrsError as e:
            return attempt.unfit(e)
        scope = current.get()
        assert scope is not None, "an item is executed inside its range"
        scope.step = call
        try:
            value = self._step.function(*args, **kwargs)
        except BaseException as e:
            if leaves(e):
                raise
            return attempt.failed(e)
        finally:
            scope.step = None
        return attempt.succeeded(value)

    def _name(self, position: int) -> str:
        return f"{self._step.name}#{self._first + position}"

    def _as_failed(self, known: RecordedStep) -> Step:
        return Step(
            known.position,
            self._name(known.position),
            WorkflowStatus.Error,
            error=known.error,
            retry_count=known.retry_count,
            retry_in_s=known.retry_in_s,
        )
