"""The thread that renews a supervisor's lease. What a lost lease means is decided in the session
(supervisors/core/session.py).
"""

import threading
from collections.abc import Callable

from pgqrs import errors
from pgqrs.store.store import MessageStore


class Lease:
    """Renews a supervisor's lease every third of its length.

    `until` is local time, counted from before the lease or its renewal was requested (`began`). So
    the lease ends here before it ends in the database.

    A lease promises other supervisors that this one is at work. So it is renewed only while
    `at_work` returns True: other supervisors take over the runs of one whose loop hangs or whose
    transaction does not end.
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
