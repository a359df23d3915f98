"""Executions of an async run in one process: interrupted anywhere, and gone on with from what was recorded.

The event loop, the tasks, the flow and the handing over of results are the real ones; the pipe and the supervisor behind it
are lists. `until_done` executes a run again and again until it ends, with a chance that each step fails, is to be retried,
or that the whole run is cut off at its begin, as a stop or a death would.
"""

import asyncio
import contextvars
import random
import time

import msgspec

from pgqrs.flows import flow
from pgqrs.flows.definitions import definition_of
from pgqrs.flows.flow import Clocks, Context, Suspended
from pgqrs.flows.history import History
from supervisors.worker.coroutines import BranchLoop, Driven, walk_in_order

EXECUTIONS_MAX = 200
CLOCKS = Clocks(time.monotonic, lambda: 0.0, lambda: 0.5)


class Lane:
    """The journal of one execution. `cut` is the chance that the run leaves where a step would begin."""

    def __init__(self, rows, chance, cut):
        self.rows = rows
        self.leaving = False
        self.tasks = set()
        self._chance = chance
        self._cut = cut

    def goes_on(self):
        pass

    def over(self, task):
        self.tasks.discard(task)
        if not task.cancelled():
            task.exception()

    async def begin(self, call):
        for _ in range(self._chance.randrange(3)):
            await asyncio.sleep(0)
        if self.leaving or self._chance.random() < self._cut:
            self.leaves()
        self.rows.begun(call)

    def record(self, step):
        if self.leaving:
            raise Suspended
        self.rows.record(step)
        if step.retry_in_s is not None:
            self.rows.left_for_s = step.retry_in_s
            self.leaves()

    def tried(self, step):
        if not self.leaving:
            self.rows.record(step)

    def leaves(self):
        self.leaving = True
        asyncio.get_running_loop().call_soon(self.root.cancel)
        raise Suspended

    def wait(self, awaitable):
        return Driven.wait(awaitable)


class Rows:
    """What is recorded of a run, and a check of every write: a result is recorded once, under one name and number."""

    def __init__(self):
        self.steps = {}
        self.bodies = []
        self.left_for_s = 0.0  # the back-off for which the run left

    def time_passes(self):
        """As the store says it when the run comes back."""
        for name, s in self.steps.items():
            wait_s = max(0.0, s.retry_in_s - self.left_for_s)
            self.steps[name] = msgspec.structs.replace(s, retry_in_s=wait_s)
        self.left_for_s = 0.0

    def begun(self, call):
        known = self.steps.get(call.name)
        assert known is None or known.status == "RETRY", f"{call.name} began again after its result"
        self.bodies.append(call.name)

    def record(self, step):
        known = self.steps.get(step.name)
        assert known is None or known.status == "RETRY", f"{step.name} was recorded twice"
        if step.retry_in_s is None:
            taken = [s.name for s in self.steps.values() if s.ended == step.ended]
            assert not taken, f"{step.name} and {taken} both ended as number {step.ended}"
        self.steps[step.name] = step.recorded


def execute(function, rows, chance=None, cut=0.0, payload=b'{"input": null}'):
    """One execution: its result as JSON. Raises Suspended, Refused."""
    chance = chance or random.Random(0)
    definition = definition_of(function)

    async def main():
        lane = Lane(rows, chance, cut)
        lane.root = asyncio.current_task()
        history = History(shuffled(rows.steps.values(), chance), ordered=False)
        run = Context(definition, 42, 1, history, lane, CLOCKS)
        own = contextvars.copy_context()

        async def drive():
            return await Driven(flow.execute_async(definition, run, payload), lane.goes_on, None, own)

        lane.root = asyncio.get_running_loop().create_task(drive(), context=own)
        try:
            return await lane.root
        finally:
            for task in lane.tasks:
                task.cancel()

    walk_in_order()
    with asyncio.Runner(loop_factory=BranchLoop) as runner:
        return runner.run(main())


def shuffled(steps, chance):
    """A store promises no order of a run's rows."""
    steps = list(steps)
    chance.shuffle(steps)
    return steps


def until_done(function, seed, cut=0.05, rows=None):
    """(result as JSON, rows) after as many executions as it takes."""
    chance, rows = random.Random(seed), rows or Rows()
    for _ in range(EXECUTIONS_MAX):
        try:
            return execute(function, rows, chance, cut), rows
        except Suspended:
            rows.time_passes()
    raise AssertionError(f"seed {seed}: not over after {EXECUTIONS_MAX} executions")
