"""The CPU clock of steps: within a millisecond of the system's, and never read more often than that."""

import time

import pytest

from supervisors import journal
from supervisors.journal import CPU_EXACT_S, CpuClock


def burn(seconds: float) -> None:
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def test_what_a_step_takes_is_told_to_the_millisecond() -> None:
    clock = CpuClock()
    for _ in range(5):
        began, really = clock(), time.process_time()
        burn(0.01)
        assert abs((clock() - began) - (time.process_time() - really)) < 2 * CPU_EXACT_S


def test_what_sleeps_takes_no_cpu() -> None:
    clock = CpuClock()
    began = clock()
    time.sleep(0.05)
    assert clock() - began < 0.02


def test_tiny_steps_do_not_ask_the_system(monkeypatch) -> None:
    now, asked = 100.0, []
    monkeypatch.setattr(journal.time, "monotonic", lambda: now)
    monkeypatch.setattr(journal.time, "process_time", lambda: asked.append(now) or 7.0)
    clock = CpuClock()
    assert clock() == 7.0
    now += CPU_EXACT_S / 2
    assert clock() == pytest.approx(7.0 + CPU_EXACT_S / 2)
    assert asked == [100.0]
    now += CPU_EXACT_S
    assert clock() == 7.0
    assert asked == [100.0, now]
