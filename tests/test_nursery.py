"""The nursery's own loop: what it answers, and that it leaves quietly when its supervisor has gone."""

import errno
import socket
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from pgqrs.program.targets import Target
from supervisors.births import nursery
from supervisors.births.launch import ForkFailed
from supervisors.births.nursery import Fork, Order


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    supervisors, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with supervisors, its:
        yield supervisors, its


def fork_as_ordered(its: socket.socket, error: OSError, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(nursery, "_fork_worker", fail)
    nursery._fork_as_ordered(its, {}, Order(Target(), 1, 1, its.fileno()), None)


def test_a_fork_that_fails_is_told_and_the_next_order_heard(
    sockets: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisors, its = sockets
    for worker in (1, 2):
        supervisors.send(msgspec.msgpack.encode(Fork(worker, "sync")))
    supervisors.shutdown(socket.SHUT_WR)
    fork_as_ordered(its, OSError(errno.EAGAIN, "no more"), monkeypatch)
    told = [msgspec.msgpack.decode(supervisors.recv(65536), type=ForkFailed) for _ in range(2)]
    assert [t.worker for t in told] == [1, 2]


def test_a_supervisor_that_goes_in_the_middle_of_a_fork_is_no_fork_that_failed(
    sockets: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked to nobody, and answered to nobody: nursery_main ends without a word."""
    supervisors, its = sockets
    supervisors.send(msgspec.msgpack.encode(Fork(1, "sync")))
    with pytest.raises(BrokenPipeError):
        fork_as_ordered(its, BrokenPipeError(), monkeypatch)
    supervisors.setblocking(False)
    with pytest.raises(BlockingIOError):
        supervisors.recv(65536)
