"""Async runs with branches whose workers are killed and whose supervisors are stopped: each result is its own."""

import random
import signal
import threading

import pytest

from tests.crashes import branches_flow
from tests.crashes.supervised import Supervised, alive, children, connected, eventually, kill

pytestmark = pytest.mark.slow

WORKFLOWS = [branches_flow.gathered, branches_flow.completed, branches_flow.waited, branches_flow.queued]
RUNS = 50  # of each workflow
KILL_EVERY_S = 0.25


class Trouble(threading.Thread):
    """Kills workers, and now and then stops the supervisor at the next step or kills it, and starts another one."""

    def __init__(self, dsn, log):
        super().__init__()
        self._dsn, self._log = dsn, log
        self._over = threading.Event()
        self._chance = random.Random(7)
        self.kills = self.stops = 0
        self.said = ""

    def run(self):
        while not self._over.is_set():
            with Supervised(self._dsn, self._log, "--quiet", target=branches_flow.__file__) as supervisor:
                # The first kill comes early: on a quick machine all runs are over within a second.
                while not self._over.wait(KILL_EVERY_S if self.kills else 0.02):
                    draw = self._chance.random() if self.kills else 1.0
                    if draw < 0.1:
                        supervisor.signal(signal.SIGTERM)
                        supervisor.signal(signal.SIGTERM)
                        self.stops += 1
                        supervisor.wait()
                        break
                    if draw < 0.15:
                        left = children(supervisor.pid)
                        kill(supervisor.pid)
                        eventually(lambda left=left: not any(map(alive, left)))
                        self.stops += 1
                        supervisor.wait()
                        break
                    for pid in supervisor.workers():
                        kill(pid)
                        self.kills += 1

    def end(self):
        self._over.set()
        self.join()


@pytest.mark.parametrize("backend", ["sqlite_dsn", pytest.param("postgres_dsn", marks=pytest.mark.postgres)])
def test_branches_get_their_own_results_whatever_dies(backend, request, tmp_path):
    dsn = request.getfixturevalue(backend)
    with connected(dsn) as store:
        store.install()
        handles = [(n, store.trigger(w, f"r{n}")) for w in WORKFLOWS for n in range(RUNS)]
        trouble = Trouble(dsn, tmp_path / "log")
        trouble.start()
        try:
            for n, handle in handles:
                wanted = {x: f"21r{n}{x}" for x in branches_flow.ITEMS}
                assert handle.result(timeout=90) == wanted, (tmp_path / "log").read_text()
        finally:
            trouble.end()
    assert trouble.kills
