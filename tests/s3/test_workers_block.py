"""`store.workers()` beside a store that has named its cache folder."""

import pytest

import pgqrs
from tests.sample_workflows import double

pytestmark = pytest.mark.timeout(120)


@pytest.mark.slow
def test_it_runs_with_a_cache_folder_of_the_users_choice(address, tmp_path):
    config = pgqrs.Config(address)
    config.s3_cache_dir = str(tmp_path / "cache")
    for _ in range(2):
        with pgqrs.connect_with(config) as store, store.workers(double, processes=1):
            handle = insisting(lambda s=store: s.trigger(double, 21))
            assert handle.result(60) == 42
    assert sorted(p.name for p in (tmp_path / "cache").iterdir() if p.name.startswith("workers-")) == [
        "workers-1"
    ]


@pytest.mark.slow
def test_two_of_one_process_do_not_meet(address, tmp_path):
    config = pgqrs.Config(address)
    config.s3_cache_dir = str(tmp_path / "cache")
    with (
        pgqrs.connect_with(config) as store,
        store.workers(double, processes=1),
        store.workers(double, processes=1),
    ):
        assert insisting(lambda: store.trigger(double, 4)).result(60) == 8


def insisting(call):
    while True:
        try:
            return call()
        except pgqrs.ConflictError:
            continue
