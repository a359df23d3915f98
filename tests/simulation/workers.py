"""A worker as the supervisor sees it: frames down, frames up, and a death at any moment. Follows supervisors/worker/worker.py."""

from __future__ import annotations

import json
import math
from collections import deque
from typing import TYPE_CHECKING, Any

from supervisors import wire
from supervisors.core import events
from tests.simulation.plan import RETRIES, TIMEOUT_S, StepPlan

if TYPE_CHECKING:
    from tests.simulation.supervisor import SimSupervisor

BACKOFF_S = 0.3


class Lane:
    def __init__(self, order: wire.Execute, history: dict[int, Any], worker: SimWorker) -> None:
        self.order = order
        self.plan = worker.world.plans[order.message_id]
        self.history = history
        self.worker = worker
        self.position = 0
        self.outputs: list[Any] = []
        self.sent = self.durable = 0
        self.stopped = False
        self.begun = False

    @property
    def ids(self) -> tuple[int, int]:
        return self.order.message_id, self.order.claim_no

    @property
    def is_workflow(self) -> bool:
        return self.plan.is_workflow

    def replay(self) -> None:
        """Past what is recorded."""
        while self.position < len(self.plan.steps) and self.position in self.history:
            recorded = self.history[self.position]
            if recorded.status != "SUCCESS":
                return
            self.outputs.append(json.loads(recorded.output) if recorded.output else None)
            self.position += 1

    @property
    def recorded_failure(self) -> bool:
        recorded = self.history.get(self.position)
        return recorded is not None and recorded.status == "ERROR"

    @property
    def tries(self) -> int:
        recorded = self.history.get(self.position)
        return recorded.retry_count if recorded is not None and recorded.status == "RETRY" else 0


class SimWorker:
    def __init__(self, supervisor: SimSupervisor, worker_id: int) -> None:
        self.supervisor = supervisor
        self.world = supervisor.world
        self.id = worker_id
        self.alive = True
        self.frozen_until = 0.0
        self._said_at = 0.0  # when the last thing in the pipe is read
        self._heard_at = 0.0
        self._lanes: dict[int, Lane] = {}
        self._ready: deque[Lane] = deque()
        self._waiting: deque[Any] = deque()
        self._fresh: deque[wire.Execute] = deque()
        self._history: dict[int, list[Any]] = {}
        self._drained = False
        self._until = math.inf
        self._current: tuple[Lane, StepPlan | None] | None = None
        self.on_cpu: int | None = None
        self._board: wire.Started | None = None  # who has the CPU, where the supervisor was not told
        self.gated = self.world.rng.random() < 0.75
        self._recalls = self._recalls_heard = 0
        self._entered = 0
        self._said: deque[events.Event] = deque()  # and not yet read
        self.world.after(self.world.rng.uniform(0.01, 0.1), self._boot)

    def freeze(self, until: float) -> None:
        """One that is stopped already stays so for as long as it would have: what waits was put off until then."""
        self.frozen_until = max(self.frozen_until, until)

    @property
    def running(self) -> int | None:
        """The message whose body it executes."""
        return self._current[0].order.message_id if self._current is not None else None

    # The pipe

    def hear(self, frame: wire.Down) -> None:
        """A frame of the supervisor's is on its way."""
        self._heard_at = max(self._heard_at, self.world.now) + self.world.latency()
        self.world.at(self._heard_at, lambda: self._when_awake(lambda: self._take(frame)))

    def begins(self, started: wire.Started, limited: bool) -> None:
        """As long as there is no limit, the supervisor looks it up: a while later, or when the worker is dead."""
        self._board = None
        if limited or self.world.rng.random() < 0.3:
            self.say(started)
            return
        self._board = started
        self.world.after(self.world.rng.uniform(0.0, 0.25), lambda: self._looked_up(started))

    def _looked_up(self, started: wire.Started) -> None:
        if self.alive and self._board is started:
            self.say(started)

    def say(self, frame: wire.Up) -> None:
        self._tell(events.Received(self.id, frame))

    def _tell(self, event: events.Event) -> None:
        self._said_at = max(self._said_at, self.world.now) + self.world.latency()
        self._said.append(event)
        self.world.at(self._said_at, lambda: self.supervisor.told(self, self.hand_over))

    def hand_over(self) -> events.Event | None:
        """The next that it said, where that was not read ahead of its time."""
        return self._said.popleft() if self._said else None

    def recall(self) -> tuple[list[events.Event], int]:
        """The supervisor closes the gate: all that was said before, and in which run the worker is."""
        self._recalls += 1
        said = []
        while self._said and isinstance(self._said[0], events.Received):
            said.append(self._said.popleft())
        return said, self._entered

    def _when_awake(self, do: Any) -> None:
        """While it is stopped, what happens to it waits, in its order."""
        self._waiting.append(do)
        self._wake()

    def _wake(self) -> None:
        if self.world.now < self.frozen_until:
            self.world.at(self.frozen_until, self._wake)
            return
        while self._waiting and self.alive:
            self._waiting.popleft()()

    # Life and death

    def _boot(self) -> None:
        if not self.alive:
            return
        self._tell(events.Launched(self.id, 1000 + self.id, self.gated))
        if self.world.fault("boot-death", 0.01):
            self.die("SIGSEGV")
            return
        self.say(wire.Ready(1000 + self.id))
        self._go_on()

    def killed(self, force: bool) -> None:
        """SIGKILL always ends it, SIGTERM only where it is not stuck."""
        stuck = self._current is not None and self._current[1] is not None and self._current[1].fate == "hang"
        if force or not stuck:
            self.world.after(self.world.latency(), lambda: self.die("SIGKILL" if force else "SIGTERM"))

    def die(self, signal: str) -> None:
        if self.alive:
            self.alive = False
            if self.on_cpu is not None:
                self.world.watch.died_on_cpu(self.on_cpu)
            self.world.note(f"{self.supervisor.name} worker {self.id} dies of {signal} on {self.on_cpu}")
            self._said_at += self.world.rng.choice([0.0, 0.001, 0.05])
            if self.on_cpu is None:
                self.say(wire.Idle())
            elif self._board is not None and self._board.message_id == self.on_cpu:
                self.say(self._board)
            self._tell(events.Exited(self.id, signal, None))

    # What it hears

    def _take(self, frame: wire.Down) -> None:
        match frame:
            case wire.Execute():
                if self._drained:
                    self.say(wire.Returned((frame.message_id,)))
                else:
                    self._fresh.append(frame)
            case wire.Lease():
                self._until = frame.until
            case wire.History():
                self._history.setdefault(frame.message_id, []).extend(frame.steps)
            case wire.Committed():
                for message_id, claim_no in frame.runs:
                    lane = self._lanes.get(message_id)
                    if lane is not None and lane.order.claim_no == claim_no:
                        lane.durable += 1
                        if lane.durable >= lane.sent and lane not in self._ready:
                            self._ready.append(lane)
            case wire.Cancel():
                lane = self._lanes.get(frame.message_id)
                if lane is not None and lane.order.claim_no == frame.claim_no:
                    self._stop(lane)
                else:
                    asked = (frame.message_id, frame.claim_no)
                    self._give_back([o for o in self._fresh if (o.message_id, o.claim_no) == asked])
            case wire.Revoke():
                self._give_back(list(self._fresh)[-frame.count :] if frame.count else [])
            case wire.Recall():
                self._recalls_heard += 1
                self._give_back([o for o in self._fresh if (o.message_id, o.claim_no) in frame.runs])
                for message_id, claim_no in frame.runs:
                    lane = self._lanes.get(message_id)
                    if lane is not None and lane.order.claim_no == claim_no:
                        self._stop(lane)
            case wire.Drain():
                self._drained = True
                self._give_back(list(self._fresh))
                if frame.at_boundary:
                    for lane in list(self._lanes.values()):
                        self._stop(lane)
        self._go_on()

    def _stop(self, lane: Lane) -> None:
        lane.stopped = True
        if lane not in self._ready and (self._current is None or self._current[0] is not lane):
            self._ready.append(lane)

    def _give_back(self, orders: list[wire.Execute]) -> None:
        for order in orders:
            self._fresh.remove(order)
            self._history.pop(order.message_id, None)
        self.say(wire.Returned(tuple(o.message_id for o in orders)))

    # What it does: one thing at a time

    def _go_on(self) -> None:
        # It looks at its pipe before it begins anything: there it sees the end of its supervisor too.
        while self.alive and self.supervisor.alive and self._current is None and self.world.now < self._until:
            if not self._may_enter():
                return
            if self._ready:
                lane = self._ready.popleft()
            elif self._fresh:
                order = self._fresh.popleft()
                history = {s.position: s for s in self._history.pop(order.message_id, [])}
                lane = self._lanes[order.message_id] = Lane(order, history, self)
            else:
                if self.on_cpu is not None:
                    self.on_cpu = None
                    self.say(wire.Idle())
                return
            self._enter(lane)

    def _may_enter(self) -> bool:
        """Else it goes on when it hears of the Recall that is on its way."""
        if self._ready:
            self._entered = self._ready[0].order.message_id
        elif self._fresh:
            self._entered = self._fresh[0].message_id
        else:
            self._entered = 0
        return self._recalls == self._recalls_heard

    def _enter(self, lane: Lane) -> None:
        if not lane.begun:
            lane.begun = True
            self.on_cpu = lane.order.message_id
            self.begins(wire.Started(*lane.ids), limited=False)
            lane.replay()
        if lane.stopped:
            self._leave(lane, wire.Returned((lane.order.message_id,)))
        elif lane.position >= len(lane.plan.steps):
            self._leave(lane, wire.Finished(*lane.ids, json.dumps(lane.outputs).encode()))
        elif lane.recorded_failure:
            self._leave(lane, wire.Failed(*lane.ids, b'{"type": "Error", "message": "as recorded"}'))
        elif lane.durable < lane.sent:
            pass  # goes on when it hears that its checkpoint is durable
        else:
            self._begin(lane)

    def _begin(self, lane: Lane) -> None:
        step, position = lane.plan.steps[lane.position], lane.position
        self.on_cpu = lane.order.message_id
        self._current = (lane, step)
        if lane.is_workflow:
            again_s = BACKOFF_S if step.fate in ("retry", "hang") and lane.tries < RETRIES else None
            limited = step.fate == "hang" or self.world.rng.random() < 0.3
            limit_s = TIMEOUT_S if limited else None
            started = wire.Started(*lane.ids, f"step{position}", position, limit_s, lane.tries, again_s)
            self.begins(started, limited)
        body = self.world.body_started(lane, position)
        bad = body <= step.times or step.fate == "poison"
        if step.fate == "hang" and bad:
            return  # until it is killed at its time limit
        if step.fate in ("crash", "poison") and bad:
            self.world.after(
                step.seconds * self.world.rng.random(), lambda: self._when_awake(lambda: self.die("SIGSEGV"))
            )
            return
        self.world.after(step.seconds, lambda: self._when_awake(lambda: self._end(lane, step, body, bad)))

    def _end(self, lane: Lane, step: StepPlan, body: int, bad: bool) -> None:
        self._current = None
        self._board = wire.Started(*lane.ids, position=lane.position + 1)
        name, position = f"step{lane.position}", lane.position
        told = (*lane.ids, position, name)
        if not lane.is_workflow:
            ended = (
                wire.Failed(*lane.ids, b'{"type": "Error", "message": "bad"}')
                if step.fate == "fail" and bad
                else wire.Finished(*lane.ids, b"null")
            )
            self._leave(lane, ended)
        elif step.fate == "retry" and bad and lane.tries < RETRIES:
            self._leave(
                lane,
                wire.StepFailed(*told, b'{"type": "Error"}', step.seconds, 0.0, lane.tries + 1, BACKOFF_S),
            )
        elif step.fate == "pause":
            self._leave(lane, wire.Paused(*told, "wait", self.world.rng.choice([0.2, 1.0, None])))
        elif step.fate == "fail":
            self.say(wire.Checkpoint(*told, None, b'{"type": "Error"}', step.seconds, 0.0, 0))
            lane.sent += 1
            self._leave(lane, wire.Failed(*lane.ids, b'{"type": "Error", "message": "bad"}'))
        else:
            # No two executions give the same: whose result is whose can be told.
            output = f"{lane.order.message_id}.{position}.{body}"
            self.say(wire.Checkpoint(*told, json.dumps(output).encode(), None, step.seconds, 0.0, lane.tries))
            lane.sent += 1
            lane.outputs.append(output)
            lane.position += 1
            self._enter(lane)
        self._go_on()

    def _leave(self, lane: Lane, end: wire.Up) -> None:
        self.say(end)
        if self._lanes.get(lane.order.message_id) is lane:
            del self._lanes[lane.order.message_id]
        if self.on_cpu == lane.order.message_id:
            self.on_cpu = None
