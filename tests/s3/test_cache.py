"""The local copy: it belongs to one process, nothing depends on it, and no doubt about it is decided in its favour."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import pgqrs
from pgqrs.store.migrations import VERSION
from pgqrs.store.s3 import replica
from tests.s3.looking import payloads

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

PROGRAM = """
import sys, pgqrs
config = pgqrs.Config(sys.argv[1])
if len(sys.argv) > 2:
    config.s3_cache_dir = sys.argv[2]
with pgqrs.connect_with(config).open() as store:
    print(store.queues()[0].ready)
"""


def elsewhere(*arguments):
    """Another process of this machine."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_second_process_cannot_have_the_same_cache_folder(opened, address, tmp_path):
    cache = tmp_path / "cache dir"
    store = opened(cache=cache)
    store.enqueue("tasks", 1)
    told = elsewhere(address, cache)
    assert told.returncode == 1
    assert "in use by another process (pid " in told.stderr
    assert "s3_cache_dir (PGQRS_S3_CACHE_DIR) of its own" in told.stderr
    store.close()
    assert elsewhere(address, cache).stdout == "1\n"


def test_without_one_each_process_finds_a_free_one(address):
    with pgqrs.connect(address) as store:
        store.enqueue("tasks", 1)
        assert elsewhere(address).stdout == "1\n"


def test_a_copy_that_is_current_is_not_fetched_again(opened, tmp_path, proxy, s3_server):
    cache = tmp_path / "cache dir"
    store = opened(cache=cache)
    store.enqueue("tasks", 1)
    store.close()
    proxy.counts.clear()
    assert [q.ready for q in opened(cache=cache).queues()] == [1]
    assert proxy.counts["GET"] == 1, "which says: not modified"


def test_one_that_is_not_is(opened, tmp_path):
    cache = tmp_path / "cache dir"
    store = opened(cache=cache)
    store.enqueue("tasks", 1)
    store.close()
    opened().enqueue("tasks", 2)
    assert [q.ready for q in opened(cache=cache).queues()] == [2]


def only(folder, name):
    [found] = folder.rglob(name)
    return found


def test_after_a_boot_the_copy_is_not_trusted(opened, tmp_path, monkeypatch):
    """Durable mode does not wait for the disk: after a power cut the file may be older than the note about it."""
    cache = tmp_path / "cache dir"
    store = opened(cache=cache)
    store.enqueue("tasks", 1)
    store.close()
    note = only(cache, "replica.json")
    noted = json.loads(note.read_text())
    assert noted["etag"]
    note.write_text(json.dumps(noted | {"boot": "another"}))
    only(cache, "pgqrs.db").unlink()  # as old as can be
    assert [q.ready for q in opened(cache=cache).queues()] == [1]


@pytest.mark.parametrize(
    "damage", [b"", b"not a database at all, but long enough to be taken for a header of one " * 99]
)
def test_a_damaged_copy_is_fetched_again(damage, opened, tmp_path):
    cache = tmp_path / "cache dir"
    store = opened(cache=cache)
    store.enqueue("tasks", 1)
    store.close()
    only(cache, "pgqrs.db").write_bytes(damage)
    only(cache, "replica.json").unlink()
    assert [q.ready for q in opened(cache=cache).queues()] == [1]


def test_a_process_that_died_between_the_put_and_the_local_commit_is_recognised(
    opened, tmp_path, s3_server, address
):
    """S3 has the write, its caller may or may not have heard, the copy does not have it: the note says which version it is of."""
    cache = tmp_path / "cache dir"
    program = """
import os, sys, pgqrs
from pgqrs.store.s3.bucket import S3Object
config = pgqrs.Config(sys.argv[1]); config.s3_cache_dir = sys.argv[2]
store = pgqrs.connect_with(config).open()
store.enqueue("tasks", "before")
real = S3Object.put
def put(self, *a):
    real(self, *a)
    os._exit(9)
S3Object.put = put
store.enqueue("tasks", "the last")
"""
    ended = subprocess.run([sys.executable, "-c", program, address, str(cache)], cwd=ROOT, check=False)
    assert ended.returncode == 9
    assert payloads(s3_server, address, tmp_path) == ['"before"', '"the last"']
    store = opened(cache=cache)
    assert [q.ready for q in store.queues()] == [2]
    store.enqueue("tasks", "next")
    assert payloads(s3_server, address, tmp_path) == ['"before"', '"the last"', '"next"']


def test_one_that_died_before_the_put_has_written_nothing(opened, tmp_path, s3_server, address):
    cache = tmp_path / "cache dir"
    program = """
import os, sys, pgqrs
from pgqrs.store.s3.bucket import S3Object
from pgqrs.store.migrations import VERSION
config = pgqrs.Config(sys.argv[1]); config.s3_cache_dir = sys.argv[2]
store = pgqrs.connect_with(config).open()
store.enqueue("tasks", "before")
S3Object.put = lambda *a: os._exit(9)
store.enqueue("tasks", "the last")
"""
    subprocess.run([sys.executable, "-c", program, address, str(cache)], cwd=ROOT, check=False)
    store = opened(cache=cache)
    assert [q.ready for q in store.queues()] == [1]
    store.enqueue("tasks", "next")
    assert payloads(s3_server, address, tmp_path) == ['"before"', '"next"']


def test_a_folder_that_cannot_be_made_is_told(address, tmp_path):
    (tmp_path / "file").write_text("")
    config = pgqrs.Config(address)
    config.s3_cache_dir = str(tmp_path / "file" / "cache")
    with pytest.raises(pgqrs.ConfigError, match="s3_cache_dir"):
        pgqrs.connect_with(config).open()


def test_unsynced_writes_of_local_mode_are_not_overwritten_by_durable_mode(opened, tmp_path):
    from pgqrs.config import DurabilityMode

    cache = tmp_path / "cache dir"
    local = opened(DurabilityMode.Local, cache)
    local.enqueue("tasks", "mine")
    local.close()
    opened().enqueue("tasks", "theirs")
    with pytest.raises(pgqrs.ConflictError, match="unsynced writes"):
        opened(cache=cache)


def test_the_last_store_of_a_process_leaves_the_folder(opened, tmp_path):
    cache = tmp_path / "cache dir"
    a, b = opened(cache=cache), opened(cache=cache)
    a.close()
    assert len(replica._open) >= 1
    assert b.install() == VERSION
    b.close()
    assert str(cache) not in repr(list(replica._open))


def cleaned(folder):
    only(folder, "pgqrs.db").unlink()


def emptied(folder):
    only(folder, "pgqrs.db").write_bytes(b"")


def put_back(folder):
    """By a backup of this machine, say: an older file, and the note of a younger one."""
    only(folder, "pgqrs.db").write_bytes((folder / "older").read_bytes())


@pytest.mark.parametrize("what", [cleaned, emptied, put_back])
def test_a_file_that_is_not_the_one_of_its_note_is_fetched_again(what, opened, tmp_path, address, s3_server):
    """Taken for what S3 has, it would be written over that."""
    cache = tmp_path / "cache dir"
    store = opened(cache=cache)
    store.enqueue("tasks", 1)
    store.close()
    (cache / "older").write_bytes(only(cache, "pgqrs.db").read_bytes())
    store = opened(cache=cache)
    store.enqueue("tasks", 2)
    store.close()
    what(cache)
    store = opened(cache=cache)
    assert [q.ready for q in store.queues()] == [2]
    assert store.enqueue("tasks", 3) == 3
    assert payloads(s3_server, address, tmp_path) == ["1", "2", "3"]


def test_what_an_earlier_process_left_is_not_made_the_object_again(opened, tmp_path, address, s3_server):
    """Somebody removed the object to begin anew; the copy may be of any age."""
    cache = tmp_path / "cache dir"
    store = opened(cache=cache)
    store.enqueue("tasks", "done long ago")
    store.close()
    s3_server.delete(address)
    store = opened(cache=cache)
    store.install()
    store.enqueue("tasks", "new")
    assert payloads(s3_server, address, tmp_path) == ['"new"']


def test_a_forked_child_neither_keeps_nor_gives_away_the_folder(opened, tmp_path, address):
    cache = tmp_path / "cache dir"
    store = opened(cache=cache)
    store.enqueue("tasks", 1)
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        store._messages.database._lent()  # as the garbage collector may
        os.read(told, 1)
        os._exit(0)
    assert elsewhere(address, cache).returncode == 1
    store.close()
    assert elsewhere(address, cache).stdout == "1\n"
    os.write(tell, b".")
    os.waitpid(pid, 0)


def test_a_store_that_could_not_be_opened_leaves_the_folder(opened, tmp_path):
    from pgqrs.config import DurabilityMode

    cache = tmp_path / "cache dir"
    store = opened(DurabilityMode.Local, cache)
    store.enqueue("tasks", 1)
    store.close()
    only(cache, "pgqrs.db").write_bytes(b"no database" * 99)
    for _ in range(2):
        with pytest.raises(pgqrs.PgqrsConnectionError, match="file is not a database"):
            opened(DurabilityMode.Local, cache)


def test_a_user_without_a_home_names_a_folder(address, monkeypatch, opened):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(pgqrs.ConfigError, match="set s3_cache_dir"):
        pgqrs.connect(address).open()
    store = opened()  # which has one
    assert store.enqueue("tasks", 1) == 1


def test_nobody_else_may_read_the_copy(opened, tmp_path):
    cache = tmp_path / "cache dir"
    opened(cache=cache).install()
    assert only(cache, "pgqrs.db").parent.stat().st_mode & 0o077 == 0


def test_a_full_disk_is_told_as_such_and_costs_nothing(opened, tmp_path, monkeypatch, address, s3_server):
    """The note that cannot be written is an old one then, which costs a download."""
    cache = tmp_path / "cache dir"
    store = opened(cache=cache)
    store.enqueue("tasks", 1)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", full)
        assert store.enqueue("tasks", 2) == 2
        opened().enqueue("tasks", 3)
        patched.setattr(Path, "write_bytes", full)
        time.sleep(0.06)
        with pytest.raises(pgqrs.PgqrsConnectionError, match="cannot be used: No space left"):
            store.queues()
    assert [q.ready for q in store.queues()] == [3]
    store.close()
    assert [q.ready for q in opened(cache=cache).queues()] == [3]
