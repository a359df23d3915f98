"""Local: writes stay on this machine until `sync`, which never overwrites what somebody else has written."""

import subprocess
import sys
from pathlib import Path

import pytest

import pgqrs
from pgqrs.config import Config, DurabilityMode
from pgqrs.model.states import SyncState
from tests.s3.faults import LOSE, REFUSE
from tests.s3.looking import payloads

pytestmark = pytest.mark.slow

LOCAL = DurabilityMode.Local


def test_writes_stay_local_until_sync(opened, s3_server, address, tmp_path, proxy):
    store = opened(LOCAL)
    store.install()
    store.enqueue("tasks", 1)
    assert s3_server.body(address) is None
    assert proxy.puts == 0
    pgqrs.as_s3(store).sync()
    assert proxy.puts == 1
    assert payloads(s3_server, address, tmp_path) == ["1"]


def test_sync_twice_writes_once(opened, proxy):
    store = opened(LOCAL)
    store.install()
    pgqrs.as_s3(store).sync()
    pgqrs.as_s3(store).sync()
    assert proxy.puts == 1


def test_a_snapshot_takes_what_is_there(store, opened):
    store.enqueue("tasks", 1)
    local = opened(LOCAL)
    pgqrs.as_s3(local).snapshot()
    assert [q.ready for q in local.queues()] == [1]
    local.enqueue("tasks", 2)
    pgqrs.as_s3(local).sync()
    assert [q.ready for q in opened().queues()] == [2]


def test_a_snapshot_does_not_undo_unsynced_writes(store, opened):
    local = opened(LOCAL)
    pgqrs.as_s3(local).snapshot()
    local.enqueue("tasks", 1)
    with pytest.raises(pgqrs.PgqrsError, match="unsynced writes"):
        pgqrs.as_s3(local).snapshot()
    pgqrs.as_s3(local).sync()
    pgqrs.as_s3(local).snapshot()
    assert [q.ready for q in local.queues()] == [1]


def test_a_snapshot_of_nothing_says_so(opened):
    with pytest.raises(pgqrs.PgqrsError, match="no object"):
        pgqrs.as_s3(opened(LOCAL)).snapshot()


def test_sync_over_an_object_that_moved_on_is_a_conflict(store, opened, s3_server, address, tmp_path):
    local = opened(LOCAL)
    pgqrs.as_s3(local).snapshot()
    store.enqueue("tasks", "theirs")
    local.enqueue("tasks", "ours")
    for _ in range(2):
        with pytest.raises(pgqrs.PgqrsError, match="conflict"):
            pgqrs.as_s3(local).sync()
    assert payloads(s3_server, address, tmp_path) == ['"theirs"']
    assert [q.ready for q in local.queues()] == [1]


def test_without_a_snapshot_an_object_that_is_there_is_a_conflict(store, opened, tmp_path):
    """Also where the cache holds the very version: `connect` takes no baseline from it."""
    cache = tmp_path / "cache dir"
    first = opened(LOCAL, cache)
    pgqrs.as_s3(first).snapshot()
    for cached in (first, None):
        if cached is not None:
            cached.close()
        local = opened(LOCAL, cache if cached is not None else None)
        local.install()
        with pytest.raises(pgqrs.PgqrsError, match="conflict"):
            pgqrs.as_s3(local).sync()


def test_an_object_deleted_meanwhile_is_made_again_by_sync(opened, s3_server, address, tmp_path):
    store = opened(LOCAL)
    store.install()
    handle = pgqrs.as_s3(store)
    handle.sync()
    s3_server.delete(address)
    assert handle.state() == SyncState.RemoteMissingClean
    handle.sync()
    store.enqueue("tasks", 1)
    s3_server.delete(address)
    assert handle.state() == SyncState.RemoteMissingDirty
    handle.sync()
    assert payloads(s3_server, address, tmp_path) == ["1"]


def test_every_state_can_be_told(opened, store):
    local = opened(LOCAL)
    handle = pgqrs.as_s3(local)
    assert handle.state() == SyncState.LocalMissing
    handle.snapshot()
    assert handle.state() == SyncState.InSync
    local.enqueue("tasks", 1)
    assert handle.state() == SyncState.LocalChanges
    handle.sync()
    assert handle.state() == SyncState.InSync
    store.enqueue("tasks", 2)
    assert handle.state() == SyncState.RemoteChanges
    local.enqueue("tasks", 3)
    assert handle.state() == SyncState.ConcurrentChanges


def test_unsynced_writes_outlive_the_process(opened, tmp_path):
    cache = tmp_path / "cache dir"
    first = opened(LOCAL, cache)
    first.install()
    first.enqueue("tasks", 1)
    first.close()
    second = opened(LOCAL, cache)
    assert pgqrs.as_s3(second).state() == SyncState.RemoteMissingDirty
    assert [q.ready for q in second.queues()] == [1]
    pgqrs.as_s3(second).sync()
    assert [q.ready for q in opened().queues()] == [1]


def test_two_handles_of_a_process_share_a_cache(opened, tmp_path):
    cache = tmp_path / "cache dir"
    first, second = opened(LOCAL, cache), opened(LOCAL, cache)
    first.install()
    first.enqueue("tasks", 1)
    assert [q.ready for q in second.queues()] == [1]
    pgqrs.as_s3(first).sync()
    pgqrs.as_s3(second).snapshot()
    second.enqueue("tasks", 2)
    assert [q.ready for q in first.queues()] == [2]
    pgqrs.as_s3(second).sync()
    assert pgqrs.as_s3(first).state() == SyncState.InSync


def test_the_command_line_refuses_local_mode(address, monkeypatch, capfd):
    from tests.cli_runner import Pgqrs

    monkeypatch.setenv("PGQRS_S3_MODE", "local")
    ended = Pgqrs(address, monkeypatch, capfd)("install")
    assert ended.code == 2
    assert "until sync()" in ended.err


def test_a_blank_cache_dir_is_refused_on_assignment():
    for blank in ("", "  "):
        with pytest.raises(pgqrs.ConfigError, match="cache dir cannot be empty"):
            Config("s3://b/k").s3_cache_dir = blank


def test_a_sync_of_unknown_outcome_is_no_conflict_with_ourselves(
    opened, store, proxy, s3_server, address, tmp_path
):
    """It was carried out, and nobody told us. Theirs on top of it would be a conflict."""
    local = opened(LOCAL)
    handle = pgqrs.as_s3(local)
    handle.snapshot()
    local.enqueue("tasks", 1)
    proxy.next("PUT", LOSE, *[REFUSE] * 4)
    proxy.next("HEAD", *[REFUSE] * 5)
    with pytest.raises(pgqrs.PgqrsConnectionError, match="unknown whether"):
        handle.sync()
    assert payloads(s3_server, address, tmp_path) == ["1"]
    local.enqueue("tasks", 2)
    assert handle.state() == SyncState.LocalChanges
    handle.sync()
    assert payloads(s3_server, address, tmp_path) == ["1", "2"]
    local.enqueue("tasks", 3)
    proxy.next("PUT", LOSE, *[REFUSE] * 4)
    proxy.next("HEAD", *[REFUSE] * 5)
    with pytest.raises(pgqrs.PgqrsConnectionError, match="unknown whether"):
        handle.sync()
    opened().enqueue("tasks", "theirs")
    with pytest.raises(pgqrs.ConflictError):
        handle.sync()
    assert payloads(s3_server, address, tmp_path) == ["1", "2", "3", '"theirs"']


def test_a_process_that_died_in_sync_is_no_conflict_with_the_next(opened, s3_server, address, tmp_path):
    cache = tmp_path / "cache dir"
    program = """
import os, sys, pgqrs
from pgqrs.store.s3.bucket import S3Object
config = pgqrs.Config(sys.argv[1]); config.s3_cache_dir = sys.argv[2]; config.s3_mode = pgqrs.DurabilityMode.Local
store = pgqrs.connect_with(config).open()
store.enqueue("tasks", 1)
real = S3Object.put
def put(self, *a):
    real(self, *a)
    os._exit(9)
S3Object.put = put
pgqrs.as_s3(store).sync()
"""
    ended = subprocess.run(
        [sys.executable, "-c", program, address, str(cache)], cwd=Path(__file__).parents[2], check=False
    )
    assert ended.returncode == 9
    local = opened(LOCAL, cache)
    local.enqueue("tasks", 2)
    pgqrs.as_s3(local).sync()
    assert payloads(s3_server, address, tmp_path) == ["1", "2"]
