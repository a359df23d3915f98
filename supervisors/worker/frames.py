"""The runs that a worker has, and how each frame of the supervisor changes them.

Both kinds of worker (worker.py, async_worker.py) and the simulation handle frames here. A run is
first an order (`fresh`), which can be given back. When it has begun, it is a lane (`lanes`), which
leaves the worker only at a step boundary.
"""

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Generic, Protocol, TypeVar

from pgqrs.flows.flow import Clocks, Definition
from pgqrs.model.writes import RecordedStep
from supervisors import wire
from supervisors.worker.journal import CLOCKS, Outbox


class AnyLane(Protocol):
    """The parts of a begun run that frames change. See PipeJournal."""

    message_id: int
    claim_no: int
    sent: int
    durable: int
    stopped: bool
    refused: str | None
    definition: Definition
    end: int


Lane = TypeVar("Lane", bound=AnyLane)


class Runs(ABC, Generic[Lane]):
    """The runs of one worker. A subclass defines how a lane is woken and stopped."""

    def __init__(
        self,
        outbox: Outbox,
        functions: Mapping[str, Definition],
        payload_bytes_max: int,
        clocks: Clocks = CLOCKS,
    ) -> None:
        self.outbox = outbox
        self.functions = functions
        self.payload_bytes_max = payload_bytes_max
        self.clocks = clocks
        # The identity of the supervisor's database, once the supervisor has sent it.
        self.database = ""
        # When the supervisor's lease ends, in monotonic seconds.
        self.lease_until = math.inf
        self.fresh: deque[wire.Execute] = deque()
        self.lanes: dict[int, Lane] = {}
        # Recorded steps of runs whose Execute has not come yet or has not begun.
        self._history: dict[int, list[RecordedStep]] = {}
        # Whether the worker was told to begin nothing more.
        self._drained = False

    @property
    def overdue(self) -> bool:
        """Whether the lease has ended, as far as this worker knows. Another supervisor may have the
        runs then.
        """
        return self.clocks.now_s() >= self.lease_until

    def take(self, frame: wire.Down | wire.Up) -> None:
        match frame:
            case wire.Execute():
                if self._drained:
                    self._give_back([frame])
                else:
                    self.fresh.append(frame)
                    self._arrived()
            case wire.History():
                self._history.setdefault(frame.message_id, []).extend(frame.steps)
            case wire.Committed():
                for run in frame.runs:
                    if (lane := self._lane(*run)) is not None:
                        assert lane.durable < lane.sent, "Committed answers a checkpoint that was sent"
                        lane.durable += 1
                        self._wake(lane)
            case wire.Cancel():
                if (lane := self._lane(frame.message_id, frame.claim_no)) is not None:
                    self._stop(lane, frame.now)
                else:
                    self._give_back(self._orders([(frame.message_id, frame.claim_no)]))
            case wire.WaitRefused():
                if (lane := self._lane(frame.message_id, frame.claim_no)) is not None:
                    lane.refused = frame.why
            case wire.Revoke():
                self._give_back(list(self.fresh)[-frame.count :] if frame.count else [])
            case wire.Recall():
                self._recalled()
                self._give_back(self._orders(frame.runs))
                for run in frame.runs:
                    if (lane := self._lane(*run)) is not None:
                        self._stop(lane)
                for message_id, claim_no, end in frame.cuts:
                    if (lane := self._lane(message_id, claim_no)) is not None:
                        lane.end = min(lane.end, end)
            case wire.Drain():
                self._drained = True
                self._give_back(list(self.fresh))
                for lane in list(self.lanes.values()):
                    # A range has many items, and keeps those that have ended.
                    if frame.at_boundary or lane.definition.kind == "map":
                        self._stop(lane)
            case wire.Lease():
                self.lease_until = frame.until
                self._extended()
            case wire.Welcome():
                self.database = frame.database

    def next_order(self) -> tuple[wire.Execute, tuple[RecordedStep, ...]]:
        """Returns the order that has waited longest, with the recorded steps of its run."""
        order = self.fresh.popleft()
        return order, tuple(self._history.pop(order.message_id, ()))

    def _lane(self, message_id: int, claim_no: int) -> Lane | None:
        """Returns the lane of the run, if the run has begun under this claim."""
        lane = self.lanes.get(message_id)
        return lane if lane is not None and lane.claim_no == claim_no else None

    def _orders(self, runs: Iterable[tuple[int, int]]) -> list[wire.Execute]:
        """Returns the orders of those runs (message id, claim number) that have not begun."""
        asked = set(runs)
        return [o for o in self.fresh if (o.message_id, o.claim_no) in asked]

    def _give_back(self, orders: list[wire.Execute]) -> None:
        """Returns orders to the supervisor. Sends an answer even if there is nothing to return,
        because a Revoke stays open until it is answered.
        """
        given = {(o.message_id, o.claim_no) for o in orders}
        self.fresh = deque(o for o in self.fresh if (o.message_id, o.claim_no) not in given)
        for message_id, _ in given:
            self._history.pop(message_id, None)
        self.outbox.add(wire.Returned(tuple(o.message_id for o in orders)))
        self._said()

    # What differs between the kinds of worker

    @abstractmethod
    def _wake(self, lane: Lane) -> None:
        """Called when a checkpoint of the lane has become durable."""

    @abstractmethod
    def _stop(self, lane: Lane, now: bool = False) -> None:
        """Makes the lane leave at its next step boundary. With `now`, code on an event loop is
        cancelled where it waits.
        """

    @abstractmethod
    def _said(self) -> None:
        """Called when an answer is in the outbox, because the supervisor may wait for it."""

    # What only one kind of worker cares about.

    def _arrived(self) -> None:
        """Called when an order has come."""

    def _recalled(self) -> None:
        """Called when a Recall frame was read."""

    def _extended(self) -> None:
        """Called when the lease was extended."""
