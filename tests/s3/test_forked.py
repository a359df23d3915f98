"""A process that was forked from one that had used S3 is refused at once, with what it can do instead."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

FORKS = """
import os, sys, pgqrs
dsn, how = sys.argv[1:]
parent = pgqrs.connect(dsn).open()
parent.enqueue("tasks", 1)
if how == "closed":
    parent.close()
pid = os.fork()
if pid == 0:
    import asyncio
    async def by_an_async_store():
        async with pgqrs.connect(dsn) as store:
            await store.enqueue("tasks", 2)
    try:
        if how == "async":
            asyncio.run(by_an_async_store())
        elif how == "inherited":
            parent.enqueue("tasks", 2)
        else:
            with pgqrs.connect(dsn) as store:
                store.enqueue("tasks", 2)
    except pgqrs.InternalError as e:
        print(e, flush=True)
        os._exit(7)
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
if how != "closed":
    print(parent.enqueue("tasks", 3))
"""

BEFORE_ANY_USE = """
import os, sys, pgqrs
config = pgqrs.Config(sys.argv[1])
pid = os.fork()
if pid == 0:
    with pgqrs.connect_with(config) as store:
        os._exit(10 + store.enqueue("tasks", 1))
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def program(text, *arguments):
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", text, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["open", "closed", "async"])
def test_a_new_store_in_a_forked_child_is_refused(how, address):
    told, code, *after = program(FORKS, address, how)
    assert code == "7"
    assert "was forked from one" in told
    assert "the driver's threads do not survive a fork" in told
    assert "connect to s3:// in the child alone" in told
    assert after in ([], ["2"]), "the parent goes on"


def test_so_is_an_inherited_one(address):
    told, code, after = program(FORKS, address, "inherited")
    assert code == "7"
    assert "opened before a fork" in told
    assert after == "2"


def test_a_child_of_a_parent_that_never_used_s3_may_connect(address):
    assert program(BEFORE_ANY_USE, address) == ["11"]


@pytest.mark.slow
def test_multiprocessing_by_spawn_works(address, tmp_path):
    script = tmp_path / "spawning.py"
    script.write_text(
        """
import multiprocessing, sys, pgqrs

def send(dsn):
    with pgqrs.connect(dsn) as store:
        store.enqueue("tasks", 2)

if __name__ == "__main__":
    with pgqrs.connect(sys.argv[1]) as store:
        store.enqueue("tasks", 1)
        child = multiprocessing.get_context("spawn").Process(target=send, args=(sys.argv[1],))
        child.start(); child.join()
        print(child.exitcode, [q.ready for q in store.queues()])
"""
    )
    ended = subprocess.run(
        [sys.executable, str(script), address],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert ended.stdout == "0 [2]\n", ended.stderr
