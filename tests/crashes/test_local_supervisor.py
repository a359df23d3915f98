"""A program that asked for workers takes them along, however it ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import pgqrs
from tests.crashes.conftest import Proves
from tests.crashes.supervised import alive, children, eventually, starts

pytestmark = pytest.mark.slow

# A shell that starts the tests in the background has SIGINT ignored in all that they start.
PROGRAM = """
import signal, sys, pgqrs
signal.signal(signal.SIGINT, signal.default_int_handler)
from tests.crashes import pipeline
with pgqrs.connect(sys.argv[1]) as store, store.workers(pipeline.long_run, processes=1):
    store.trigger(pipeline.long_run, sys.argv[2], 40.0).result(60)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_its_supervisor_and_workers_end_with_it(
    sqlite_dsn: str, tmp_path: Path, number: int, proves: Proves
) -> None:
    evidence = tmp_path / "e"
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, sqlite_dsn, str(evidence)],
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        [_, slow] = eventually(lambda: (s := starts(evidence))[1:] and s)
        [supervisor] = [
            pid for pid in children(program.pid) if "supervisors" in Path(f"/proc/{pid}/cmdline").read_text()
        ]
        at = time.monotonic()
        program.send_signal(number)
        _, told = program.communicate(timeout=15)
        eventually(lambda: not alive(supervisor) and not alive(slow.pid), timeout=10)
        assert time.monotonic() - at < 9
        assert "still running" not in told
    finally:
        program.kill()
    with pgqrs.connect(sqlite_dsn) as store:
        [run] = store.runs()
        assert (run.status, run.crash_count) == (pgqrs.WorkflowStatus.Running, 0)
        [queue] = [q for q in store.queues() if q.queue_name == "long_run"]
        assert (queue.ready, queue.held) == (1, 0)
    proves(
        "a program with `store.workers(…)` dies, or is told to end",
        "its supervisor and workers end with it; executing runs are released",
        charged="nobody",
    )
