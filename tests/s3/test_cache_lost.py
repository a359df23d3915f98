"""The local copy goes away under a store or a supervisor: it is made again from S3, which has all that was told as written."""

import os
import shutil
from pathlib import Path

import pytest

import pgqrs
from pgqrs.config import DurabilityMode
from tests.crashes.supervised import Supervised, connected, eventually
from tests.s3.looking import payloads
from tests.s3.test_cache import elsewhere, only

TARGET = str(Path(__file__).with_name("drained.py"))
pytestmark = [pytest.mark.timeout(120), pytest.mark.slow]


def folder_of(cache):
    return only(cache, "pgqrs.db").parent


def removed(cache):
    shutil.rmtree(cache)


def moved(cache):
    cache.rename(cache.with_name("moved"))


def copied_back(cache):
    """Moved away, and an older copy of it put in its place."""
    shutil.copytree(cache, cache.with_name("copy"))
    shutil.rmtree(cache)
    cache.with_name("copy").rename(cache)


def file_removed(cache):
    for file in folder_of(cache).glob("pgqrs.db*"):
        file.unlink()


def file_replaced(cache):
    (cache / "new").write_bytes(b"")
    (cache / "new").rename(only(cache, "pgqrs.db"))


WAYS = [removed, moved, copied_back, file_removed, file_replaced]


@pytest.mark.parametrize("goes", WAYS)
def test_a_store_makes_it_again(goes, opened, tmp_path, s3_server, address):
    cache = tmp_path / "cache dir"
    store = opened(cache=cache)
    store.enqueue("tasks", 1)
    opened().enqueue("tasks", 2)
    goes(cache)
    assert store.enqueue("tasks", 3) == 3
    assert [q.ready for q in store.queues()] == [3]
    assert store.enqueue("tasks", 4) == 4
    assert payloads(s3_server, address, tmp_path) == ["1", "2", "3", "4"]
    assert only(cache, "pgqrs.db").is_file()


@pytest.mark.parametrize("goes", WAYS)
def test_so_does_one_that_only_looks(goes, opened, tmp_path):
    cache = tmp_path / "cache dir"
    store = opened(cache=cache)
    store.enqueue("tasks", 1)
    goes(cache)
    assert [q.ready for q in store.queues()] == [1]
    opened().enqueue("tasks", 2)
    eventually(lambda: [q.ready for q in store.queues()] == [2])


def test_all_stores_of_the_process_have_the_new_one(opened, tmp_path):
    cache = tmp_path / "cache dir"
    one, other = opened(cache=cache), opened(cache=cache)
    one.enqueue("tasks", 1)
    removed(cache)
    assert one.enqueue("tasks", 2) == 2
    assert [q.ready for q in other.queues()] == [2]
    assert other.enqueue("tasks", 3) == 3
    assert [q.ready for q in one.queues()] == [3]


def test_the_new_folder_is_ours_alone(opened, tmp_path, address):
    cache = tmp_path / "cache dir"
    store = opened(cache=cache)
    store.enqueue("tasks", 1)
    removed(cache)
    store.enqueue("tasks", 2)
    assert "in use by another process" in elsewhere(address, cache).stderr
    store.close()
    assert elsewhere(address, cache).stdout == "2\n"


def test_a_store_whose_folder_another_process_has_by_now_says_so(opened, tmp_path, address):
    """Without a folder of one's choice, there is another one to take."""
    store = pgqrs.connect(address).open()
    store.enqueue("tasks", 1)
    removed(Path(os.environ["XDG_CACHE_HOME"]))
    assert elsewhere(address).stdout == "1\n"
    assert store.enqueue("tasks", 2) == 2
    store.close()


@pytest.mark.parametrize("goes", WAYS)
def test_what_was_not_synced_is_told_as_lost(goes, opened, tmp_path):
    cache = tmp_path / "cache dir"
    store = opened(DurabilityMode.Local, cache)
    store.enqueue("tasks", 1)
    goes(cache)
    for call in (lambda: store.enqueue("tasks", 2), lambda: pgqrs.as_s3(store).sync()):
        with pytest.raises(pgqrs.SchemaError, match="was removed or replaced while this store had it open"):
            call()


@pytest.mark.slow
@pytest.mark.parametrize("goes", [removed, moved, file_removed])
def test_a_supervisor_goes_on(goes, address, tmp_path, monkeypatch, s3_server):
    evidence = tmp_path / "evidence"
    monkeypatch.setenv("EVIDENCE", str(evidence))
    monkeypatch.setenv("PGQRS_S3_CACHE_DIR", str(tmp_path / "supervisor"))
    with connected(address) as store:
        store.enqueue("jobs", 0)
        with Supervised(address, tmp_path / "log", "--workers", "1", target=TARGET) as supervisor:
            eventually(lambda: evidence.exists() and evidence.read_text().split() == ["0"])
            goes(tmp_path / "supervisor")
            store.enqueue("jobs", 1)
            eventually(lambda: evidence.read_text().split() == ["0", "1"], what=supervisor.said)
            supervisor.signal(15)
            assert supervisor.wait() == 0, supervisor.said()
    assert payloads(s3_server, address, tmp_path) == ["0", "1"]


# An object that goes away


def test_a_copy_that_may_be_old_gives_no_id_twice(opened, s3_server, address, tmp_path):
    """The object is removed while two stores are open, and the one that makes it again has not seen what the other wrote."""
    old, new = opened(), opened()
    old.enqueue("tasks", 1)
    eventually(lambda: [q.ready for q in new.queues()] == [1])
    given = [new.enqueue("tasks", n) for n in range(2, 5)]
    s3_server.delete(address)
    eventually(lambda: old.queues() and old._messages.database.absent())
    assert old.enqueue("tasks", "after") not in given
    assert payloads(s3_server, address, tmp_path)[-1] == '"after"'
