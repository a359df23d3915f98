"""What steps are told to have used: within a millisecond of the system's word, and never asked for more often than that."""

import os
import time
from types import SimpleNamespace

import pytest

from pgqrs.model.states import WorkflowStatus
from pgqrs.model.writes import Step
from supervisors.worker import journal
from supervisors.worker.journal import EXACT_S, Meter


def burn(seconds: float) -> None:
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def test_what_a_step_takes_is_told_to_the_millisecond() -> None:
    meter = Meter()
    for _ in range(5):
        began, really = meter.cpu_s(), time.process_time()
        burn(0.01)
        assert abs((meter.cpu_s() - began) - (time.process_time() - really)) < 2 * EXACT_S


def test_what_sleeps_takes_no_cpu() -> None:
    meter = Meter()
    began = meter.cpu_s()
    time.sleep(0.05)
    assert meter.cpu_s() - began < 0.02


def test_memory_that_was_given_back_was_held() -> None:
    meter = Meter()
    meter.cpu_s()
    before = meter.peak_rss_bytes
    assert before > 1_000_000
    held = b"x" * (before + 100_000_000)
    del held
    time.sleep(EXACT_S)
    meter.cpu_s()
    assert meter.peak_rss_bytes >= before + 100_000_000


def test_a_worker_says_its_own_pid_although_it_is_a_fork() -> None:
    readable, writable = os.pipe()
    if (child := os.fork()) == 0:
        try:
            step = journal._measured(Step(0, "step", WorkflowStatus.Success))
            os.write(writable, str(step.pid).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert int(os.read(readable, 20)) == child
    os.close(readable)
    os.close(writable)


def test_tiny_steps_do_not_ask_the_system(monkeypatch) -> None:
    now, asked = 100.0, []
    used = SimpleNamespace(ru_utime=5.0, ru_stime=2.0, ru_maxrss=3)
    monkeypatch.setattr(journal.time, "monotonic", lambda: now)
    monkeypatch.setattr(journal.resource, "getrusage", lambda who: asked.append(now) or used)
    meter = Meter()
    assert meter.cpu_s() == 7.0
    assert meter.peak_rss_bytes == 3 * 1024
    now += EXACT_S / 2
    assert meter.cpu_s() == pytest.approx(7.0 + EXACT_S / 2)
    assert asked == [100.0]
    now += EXACT_S
    assert meter.cpu_s() == 7.0
    assert asked == [100.0, now]
