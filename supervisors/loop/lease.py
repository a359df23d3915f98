"""The thread that renews a supervisor's lease. This module only detects that the lease is lost.
What follows then is in `Session._lose_lease` (supervisors/core/session.py).
"""

import threading
from collections.abc import Callable

from pgqrs import errors
from pgqrs.store.store import MessageStore


class Lease:
    """Renews a supervisor's lease every third of its length.

    `until` is local time. It is counted from `began`, which is before the lease or its renewal was
    requested. So the lease ends here before it ends in the database.

    A lease promises other supervisors that this one works. So the lease is renewed only while
    `at_work` returns True. If the loop hangs or a transaction does not end, the lease expires, and
    other supervisors take over the runs.
    """

    def __init__(
        self,
        store: MessageStore,
        supervisor_id: int,
        lease_s: float,
        wake: Callable[[], None],
        clock: Callable[[], float],
        began: float,
        at_work: Callable[[], bool] = lambda: True,
    ) -> None:
        self._store = store
        self._clock = clock
        self._at_work = at_work
        self._id = supervisor_id
        self._lease_s = lease_s
        self._wake = wake
        self._stop = threading.Event()
        self.until = began + lease_s
        self.lost = False
        self._thread = threading.Thread(target=self._run, name="pgqrs-lease", daemon=True)
        self._thread.start()

    def close(self, timeout_s: float = 2.0) -> None:
        self._stop.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        wait_s = self._lease_s / 3
        while not self._stop.wait(wait_s):
            if not self._at_work():
                wait_s = min(0.5, self._lease_s / 10)
                continue
            began = self._clock()
            try:
                renewed = self._store.renew_lease(self._id, self._lease_s)
            except errors.PgqrsError:
                wait_s = min(0.5, self._lease_s / 10)
                continue
            # Counted from the beginning of this renewal, because a renewal over a slow network
            # takes seconds.
            wait_s = max(0.0, began + self._lease_s / 3 - self._clock())
            if renewed:
                self.until = began + self._lease_s
            else:
                self.lost = True
                self._wake()
                return
