"""The signals of a supervisor's process, which are raised in this one."""

import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from supervisors.loop.signals import Signals

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """The defaults, whatever this session was started with."""
    former = {number: signal.signal(number, signal.SIG_DFL) for number in NUMBERS}
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


@pytest.fixture
def installed() -> Iterator[tuple[Signals, socket.socket]]:
    """The signals, and the socket that each of them wakes."""
    woken, wake = socket.socketpair()
    woken.setblocking(False)
    wake.setblocking(False)
    with woken, wake, ExitStack() as stack:
        signals = Signals()
        signals.install(wake, stack)
        signals.install_suspending(stack)
        yield signals, woken


def test_each_term_and_interrupt_asks_for_the_next_level_and_wakes_the_loop(installed):
    signals, woken = installed
    for level, number in enumerate((signal.SIGTERM, signal.SIGINT, signal.SIGTERM), start=1):
        signal.raise_signal(number)
        assert signals.asked == level
        assert woken.recv(100) == bytes([number])


def test_a_hangup_asks_for_the_first_level_however_often_it_comes(installed):
    signals, _ = installed
    for _ in range(3):
        signal.raise_signal(signal.SIGHUP)
        assert signals.asked == 1
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGHUP)
    assert signals.asked == 2


def test_ctrl_z_is_for_the_loop_to_obey(installed):
    signals, _ = installed
    assert signal.getsignal(signal.SIGTSTP) != signal.SIG_DFL, "or it would stop this process"
    signal.raise_signal(signal.SIGTSTP)
    assert (signals.suspends, signals.asked) == (True, 0)


def test_what_the_parent_has_set_to_be_ignored_stays_so():
    for number in (signal.SIGHUP, signal.SIGTSTP):
        signal.signal(number, signal.SIG_IGN)
    woken, wake = socket.socketpair()
    wake.setblocking(False)
    with woken, wake, ExitStack() as stack:
        signals = Signals()
        signals.install(wake, stack)
        signals.install_suspending(stack)
        assert signals.stays
        assert signal.getsignal(signal.SIGHUP) == signal.getsignal(signal.SIGTSTP) == signal.SIG_IGN


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_while_it_starts_a_signal_ends_it_at_once(installed, number):
    signals, _ = installed
    signals.starting = True
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit):
        signal.raise_signal(number)


def test_afterwards_everything_is_as_it_was():
    woken, wake = socket.socketpair()
    wake.setblocking(False)
    before = signal.set_wakeup_fd(-1)
    try:
        with woken, wake:
            with ExitStack() as stack:
                signals = Signals()
                signals.install(wake, stack)
                signals.install_suspending(stack)
                assert signal.SIG_DFL not in map(signal.getsignal, NUMBERS)
            assert set(map(signal.getsignal, NUMBERS)) == {signal.SIG_DFL}
            assert signal.set_wakeup_fd(-1) == -1
    finally:
        signal.set_wakeup_fd(before)
