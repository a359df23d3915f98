"""What frames do to the runs of a worker, whatever kind of worker it is."""

from typing import Any

from supervisors import wire
from supervisors.worker.frames import Runs


class Said(list[wire.Up]):
    """An outbox that keeps everything."""

    add = list.append


class Worker(Runs[Any]):
    def __init__(self) -> None:
        self.said = Said()
        super().__init__(self.said, {}, 1024)  # type: ignore[arg-type]

    def _wake(self, lane: Any) -> None: ...

    def _stop(self, lane: Any, now: bool = False) -> None: ...

    def _said(self) -> None: ...


def order(n: int, claim_no: int) -> wire.Execute:
    return wire.Execute(n, claim_no, "f", "workflow", b"null", 1, ())


def test_only_the_order_of_the_claim_that_is_named_goes_back() -> None:
    """The same message under a later claim is another order: without it the run would wait for ever."""
    worker = Worker()
    for claim_no in (1, 2):
        worker.take(order(7, claim_no))
    worker.take(wire.Cancel(7, 1))
    assert worker.said == [wire.Returned((7,))]
    assert list(worker.fresh) == [order(7, 2)]


def test_a_drained_worker_gives_back_what_still_comes() -> None:
    worker = Worker()
    worker.take(wire.Drain(False))
    worker.take(order(7, 1))
    assert worker.said == [wire.Returned(()), wire.Returned((7,))]
    assert not worker.fresh
