"""Decides how many workers there are: starts missing workers, and retires substitutes that are no
longer needed. Part of the core: this module only decides.
"""

from collections.abc import Iterator, Mapping, MutableMapping, Sequence

from supervisors.core.events import Command, Kind, Launch
from supervisors.core.limits import Limits
from supervisors.core.state import Worker
from supervisors.core.states import WorkerState
from supervisors.core.waits import WAITING_MAX

# How long an idle substitute of a blocked worker is kept.
SPARE_S = 1.0
# The most retiring async workers that do not count as workers for new runs. Each of them ends only
# with its longest run.
ASYNC_LEAVING_MAX = 3


class Staffing:
    """Works on the workers of the core. `kinds` says how many workers of each kind there should be.
    Commands are appended to `orders`.
    """

    def __init__(
        self,
        kinds: Mapping[Kind, int],
        workers: MutableMapping[int, Worker],
        limits: Limits,
        orders: list[Command],
    ) -> None:
        self._kinds = kinds
        self._workers = workers
        self._limits = limits
        self._orders = orders
        self._next_worker = 1

    def next_timers(self) -> Iterator[float]:
        """Yields when a substitute will have been idle for long enough to retire, in monotonic
        seconds.
        """
        for worker in self._workers.values():
            if worker.spare_since is not None and worker.state is WorkerState.READY:
                yield worker.spare_since + SPARE_S

    def staff(self, now: float) -> None:
        if not self._limits.may_start:
            return
        for kind, wanted in self._kinds.items():
            there = [w for w in self._workers.values() if w.kind == kind and w.killing is None]
            have = len(there) - min(WAITING_MAX, sum(w.blocked for w in there))
            if kind == "async":
                # The runs of a retiring worker may wait for hours. New runs must not wait for them.
                have -= min(ASYNC_LEAVING_MAX, sum(self._limits.has_served(w) for w in there))
            for _ in range(wanted - have):
                worker = Worker(self._next_worker, kind, launched_at=now)
                self._next_worker += 1
                self._workers[worker.id] = worker
                self._orders.append(Launch(worker.id, kind))
            self._dismiss(have - wanted, there, now)

    def _dismiss(self, spare: int, there: Sequence[Worker], now: float) -> None:
        """Retires up to `spare` workers that are no longer needed. They are substitutes that were
        started while another worker was blocked, and have now been idle for SPARE_S themselves.
        """
        idle = [w for w in there if w.state is WorkerState.READY and not w.runs]
        idle = idle[-spare:] if spare > 0 else []
        for worker in there:
            if worker not in idle:
                worker.spare_since = None
            elif worker.spare_since is None:
                worker.spare_since = now
            elif now >= worker.spare_since + SPARE_S:
                worker.become(WorkerState.RETIRING)
