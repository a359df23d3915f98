"""A database file that is removed or replaced under an open store: what is done in the old one, nobody else would see."""

import asyncio
import os
import shutil

import pytest

import pgqrs

LOST = "was removed or replaced while this store had it open: nobody else sees what is done in the old one; connect again"


@pytest.fixture(params=["sqlite", "turso"])
def file_dsn(request, tmp_path):
    (tmp_path / "folder").mkdir()
    return f"{request.param}://{tmp_path}/folder/jobs.db"


def removed(path):
    for part in path.parent.glob("jobs.db*"):
        part.unlink()


def replaced(path):
    """By a backup, say."""
    shutil.copy(path, path.with_name("backup"))
    path.with_name("backup").rename(path)


def moved(path):
    path.parent.rename(path.parent.with_name("elsewhere"))


WAYS = pytest.mark.parametrize("goes", [removed, replaced, moved])


@WAYS
def test_every_call_of_a_store_is_refused(goes, file_dsn, tmp_path):
    with pgqrs.connect(file_dsn) as store:
        message = store.enqueue("tasks", 1)
        run = store.run(message)
        goes(tmp_path / "folder" / "jobs.db")
        calls = {
            "enqueue": lambda: store.enqueue("tasks", 2),
            "look": store.queues,
            "wait": lambda: run.result(60),
            "consumer": lambda: store.consumer("tasks"),
        }
        for call in calls.values():
            with pytest.raises(pgqrs.SchemaError, match=LOST):
                call()


@WAYS
def test_one_that_connects_again_goes_on(goes, file_dsn, tmp_path):
    with pgqrs.connect(file_dsn) as store:
        store.enqueue("tasks", 1)
        goes(tmp_path / "folder" / "jobs.db")
    (tmp_path / "folder").mkdir(exist_ok=True)
    with pgqrs.connect(file_dsn) as store:
        assert store.enqueue("tasks", 2) in (1, 2)


def test_so_is_an_async_one(file_dsn, tmp_path):
    async def main():
        async with pgqrs.connect(file_dsn) as store:
            await store.enqueue("tasks", 1)
            removed(tmp_path / "folder" / "jobs.db")
            with pytest.raises(pgqrs.SchemaError, match=LOST):
                await store.enqueue("tasks", 2)

    asyncio.run(main())


def test_a_relative_name_is_found_after_a_change_of_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pgqrs.connect("sqlite://jobs.db") as store:
        store.enqueue("tasks", 1)
        os.chdir("/")
        assert store.enqueue("tasks", 2) == 2


def test_one_in_memory_has_no_file():
    with pgqrs.connect("sqlite::memory:") as store:
        assert store.enqueue("tasks", 1) == 1


def test_a_link_to_the_file_will_do(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pgqrs.connect(f"sqlite://{tmp_path}/link/jobs.db") as store:
        assert store.enqueue("tasks", 1) == 1
