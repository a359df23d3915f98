"""`store.map`: a step over many items, recorded once each."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import pgqrs
from pgqrs import errors
from pgqrs.clients.blocking import Store
from tests.maps import mapped
from tests.maps.mapped import Shape

pytestmark = [pytest.mark.processes, pytest.mark.backends("sqlite", "turso", "s3", "postgres")]


@pytest.fixture
def store(dsn: str) -> Iterator[Store]:
    with pgqrs.connect(dsn) as store:
        store.install()
        yield store


def test_results_come_in_the_order_of_the_items(store: Store) -> None:
    with store.workers(mapped.double, processes=2):
        job = store.map(mapped.double, range(250))
        assert list(job.results()) == [2 * n for n in range(250)]
        assert job.progress == pgqrs.Progress(250, 250, 0, 0)
        assert [o.index for o in job.outcomes()] == list(range(250)), "it can be read again"
        by_end = list(job)
        assert sorted(o.index for o in by_end) == list(range(250))
        assert all(o.ok and o.value == 2 * o.index and o.attempts == 1 for o in by_end)


def test_items_and_results_have_their_types(store: Store) -> None:
    with store.workers(mapped.grown, mapped.added, processes=1):
        assert list(store.map(mapped.grown, [Shape("a", 3)]).results()) == [Shape("a", 4)]
        assert list(store.map(mapped.added, [1, 2], [10, 20, 30]).results()) == [11, 22]
        assert list(store.starmap(mapped.added, [(1, 2), (3, 4)]).results()) == [3, 7]


def test_no_items_are_a_result(store: Store) -> None:
    job = store.map(mapped.double, [])
    assert list(job.results()) == []
    assert job.wait(1) == pgqrs.Progress(0, 0, 0, 0)


def test_the_first_failed_item_ends_a_job_and_says_how_to_go_on(store: Store) -> None:
    with store.workers(mapped.picky, processes=1):
        job = store.map(mapped.picky, range(100), name="picky")
        with pytest.raises(
            pgqrs.MapError, match=r"retry_failed\(\)(.|\n)*item 3: ValueError: no 3"
        ) as caught:
            job.wait(60)
        assert caught.value.failed >= 1
        assert isinstance(caught.value.errors[3], ValueError)
        assert job._counts().done < 97, "nothing new was started"


def test_collect_goes_on_and_a_retry_executes_what_failed_alone(store: Store) -> None:
    with store.workers(mapped.picky, processes=2):
        job = store.map(mapped.picky, range(50), errors="collect")
        assert job.wait(60) == pgqrs.Progress(50, 45, 5, 0)
        assert [o.index for o in job.failures()] == [3, 13, 23, 33, 43]
        assert [o.value for o in job.outcomes() if o.ok] == [n for n in range(50) if n % 10 != 3]
        with pytest.raises(pgqrs.MapError):
            list(job.results())
        assert job.retry_failed() == 5
        assert job.wait(60) == pgqrs.Progress(50, 45, 5, 0)
        assert len(list(job)) == 50


@pytest.mark.parametrize(
    ("tolerate", "holds"), [(5, True), (4, False), ("10%", True), ("9%", False), (0, False)]
)
def test_more_failed_items_than_tolerated_end_the_job(store: Store, tolerate: int | str, holds: bool) -> None:
    with store.workers(mapped.picky, processes=1):
        job = store.map(mapped.picky, range(50), errors="collect", tolerate=tolerate)
        if holds:
            assert job.wait(60).failed == 5
        else:
            with pytest.raises(pgqrs.MapError):
                job.wait(60)


def test_a_failed_item_is_tried_again_while_the_others_go_on(store: Store, tmp_path: Path) -> None:
    with store.workers(mapped.shaky, processes=2):
        job = store.starmap(mapped.shaky, [(n, str(tmp_path / "e")) for n in range(20)])
        outcomes = list(job.outcomes())
    assert [o.value for o in outcomes] == list(range(20))
    assert [o.attempts for o in outcomes] == [3 if n % 4 == 1 else 1 for n in range(20)]


def test_the_same_name_gives_the_same_job_and_does_nothing_twice(store: Store, tmp_path: Path) -> None:
    items = [(n, str(tmp_path / "e"), 0.0) for n in range(30)]
    with store.workers(mapped.noted, processes=2):
        first = store.starmap(mapped.noted, items, name="squares")
        first.wait(60)
        again = store.starmap(mapped.noted, items, name="squares")
        assert again.id == first.id == store.job(mapped.noted, "squares").id
        assert list(again.results()) == [n * n for n in range(30)]
    assert sorted(map(int, (tmp_path / "e").read_text().split())) == list(range(30))


def test_a_name_belongs_to_one_step(store: Store) -> None:
    store.map(mapped.double, [1], name="mine")
    with pytest.raises(errors.ValidationError, match="another name"):
        store.map(mapped.picky, [1], name="mine")
    with pytest.raises(errors.RunNotFoundError):
        store.job(mapped.double, "nobody's")


def test_an_input_that_breaks_off_cancels_the_job_and_the_same_name_goes_on(store: Store) -> None:
    def broken() -> Iterator[int]:
        yield from range(100)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        store.map(mapped.double, broken(), name="input")
    job = store.job(mapped.double, "input")
    with pytest.raises(errors.RunCancelledError):
        job.wait(1)
    with store.workers(mapped.double, processes=1):
        job = store.map(mapped.double, range(120), name="input")
        assert list(job.results()) == [2 * n for n in range(120)]


@pytest.mark.backends("sqlite")
@pytest.mark.parametrize("items", [[1, 2, 9, 4] * 30, [1, 2]])
def test_an_input_that_differs_from_the_recorded_one_is_refused(store: Store, items: list[int]) -> None:
    def broken() -> Iterator[int]:
        yield from [1, 2, 3, 4] * 30
        raise OSError

    with pytest.raises(OSError):
        store.map(mapped.double, broken(), name="input")
    with pytest.raises(errors.ReplayMismatchError, match=r"item 2 is|was given 2"):
        store.map(mapped.double, items, name="input")


def test_a_cancelled_job_starts_nothing_and_goes_on_under_its_name(store: Store) -> None:
    job = store.map(mapped.double, range(100), name="stopped")
    job.cancel()
    with store.workers(mapped.double, processes=1):
        time.sleep(0.5)
        with pytest.raises(errors.RunCancelledError):
            job.wait(5)
        assert job._counts().done == 0
        assert list(store.map(mapped.double, range(100), name="stopped").results()) == [
            2 * n for n in range(100)
        ]


@pytest.mark.backends("sqlite")
def test_what_is_no_map_is_refused(store: Store) -> None:
    def plain(n: int) -> int:
        return n

    @pgqrs.step
    async def waits(n: int) -> int:
        return n

    for step in (plain, waits):
        with pytest.raises(errors.ValidationError):
            store.map(step, [1])
    with pytest.raises(errors.SerializationError, match=r"item 1 of the map, counted from 0"):
        store.map(mapped.double, [1, "x"])  # type: ignore[list-item]
    for wrong in ("1", "x%", "101%", -1, True, 0.5):
        with pytest.raises(errors.ValidationError):
            store.map(mapped.double, [1], errors="collect", tolerate=wrong)  # type: ignore[arg-type]
    with pytest.raises(errors.ValidationError):
        store.map(mapped.double, [1], errors="ignore")


def test_items_that_are_in_no_queue_are_no_wait_without_end(store: Store) -> None:
    job = store.map(mapped.double, range(10))
    store.get_queues().purge("double.map")
    with pytest.raises(errors.InternalError, match=r"10 items are in no queue"):
        job.wait(20)
    assert job.retry_failed() == 10
    with store.workers(mapped.double, processes=1):
        assert job.wait(20).done == 10


@pytest.mark.backends("sqlite")
def test_a_job_that_has_failed_takes_no_more_input(store: Store) -> None:
    def endless() -> Iterator[int]:
        n = 0
        while True:
            yield n
            n += 1

    with store.workers(mapped.picky, processes=1):
        job = store.map(mapped.picky, endless())
    with pytest.raises(pgqrs.MapError):
        job.wait(5)


@pytest.mark.backends("sqlite")
def test_a_wait_ends_at_its_time(store: Store) -> None:
    with pytest.raises(errors.TimeoutError, match="is a supervisor running"):
        store.map(mapped.double, [1]).wait(0.1)


@pytest.mark.backends("sqlite", "postgres")
def test_an_item_at_its_time_limit_costs_itself_alone(store: Store) -> None:
    with store.workers(mapped.hanging, processes=2):
        job = store.map(mapped.hanging, range(20), errors="collect")
        assert job.wait(60) == pgqrs.Progress(20, 19, 1, 0)
        [failed] = job.failures()
        assert failed.index == 2
        assert isinstance(failed.error, TimeoutError)


@pytest.mark.backends("sqlite", "postgres")
def test_an_item_that_kills_its_worker_costs_itself_alone(store: Store, tmp_path: Path) -> None:
    with store.workers(mapped.deadly, processes=2):
        job = store.starmap(mapped.deadly, [(n, str(tmp_path / "e")) for n in range(40)], errors="collect")
        assert job.wait(60) == pgqrs.Progress(40, 39, 1, 0)
        [failed] = job.failures()
    assert failed.index == 7
    assert "died 5 times" in str(failed.error)


@pytest.mark.backends("sqlite", "postgres")
def test_items_behind_a_long_one_go_to_other_workers(store: Store) -> None:
    with store.workers(mapped.long_first, processes=2):
        job = store.starmap(mapped.long_first, [(n, 3.0) for n in range(16)])
        began = time.monotonic()
        while job.progress.done < 15:
            assert time.monotonic() - began < 2.5, job.progress
            time.sleep(0.02)
        pids = [o.value for o in job]
    assert len(set(pids)) == 2


@pytest.mark.backends("sqlite")
def test_the_key_of_an_item_is_its_own_and_stays(store: Store) -> None:
    with store.workers(mapped.keyed, processes=2):
        keys = list(store.map(mapped.keyed, range(60)).results())
    assert len(set(keys)) == 60
    assert keys[7].endswith("/7")


def test_it_can_be_awaited(dsn: str) -> None:
    async def main() -> None:
        async with await pgqrs.connect(dsn) as store:
            await store.install()
            async with store.workers(mapped.picky, processes=1):
                job = await store.map(mapped.picky, range(20), errors="collect")
                assert (await job.wait(60)).failed == 2
                assert sorted([o.index async for o in job]) == list(range(20))
                assert [o.index async for o in job.failures()] == [3, 13]
                assert [o.value async for o in job.outcomes()][:3] == [0, 1, 2]

    asyncio.run(main())
