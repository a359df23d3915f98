# ruff: noqa: PT012, SIM117 - what is expected here is raised by leaving the block, or within it
"""The supervisor of a `store.workers()` block and its program: each hears of the other's end, whoever was forked meanwhile."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import pgqrs
from tests import sample_workflows as sample
from tests.crashes.supervised import alive, children, eventually
from tests.programs import run, write

pytestmark = [pytest.mark.slow, pytest.mark.processes]

FORKS = """
import multiprocessing, os, signal, sys, time
from concurrent.futures import ProcessPoolExecutor
import pgqrs

@pgqrs.workflow
def work() -> int:
    return 1

def by_multiprocessing():
    multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,)).start()

def by_pool():
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("fork"))
    pool.submit(time.sleep, 60)
    time.sleep(0.1)

def by_os():
    if os.fork() == 0:
        time.sleep(60)
        os._exit(0)

def by_subprocess():
    import subprocess
    subprocess.Popen(["sleep", "60"], close_fds=False)

if __name__ == "__main__":
    with pgqrs.connect(sys.argv[1]) as store, store.workers(work, processes=1):
        globals()[sys.argv[2]]()
        print(open(f"/proc/self/task/{os.getpid()}/children").read(), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""


def is_supervisor(pid: int) -> bool:
    try:
        return "supervisors.__main__" in Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False


@pytest.mark.parametrize("fork", ["by_multiprocessing", "by_pool", "by_os", "by_subprocess"])
def test_the_supervisor_ends_with_its_program_though_a_fork_of_that_lives_on(
    tmp_path: Path, sqlite_dsn: str, fork: str
) -> None:
    program = subprocess.Popen(
        [sys.executable, write(tmp_path, "script.py", FORKS), sqlite_dsn, fork],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert program.stdout is not None
    told = [int(pid) for pid in program.stdout.readline().split()]
    try:
        eventually(lambda: not any(is_supervisor(pid) and alive(pid) for pid in told), timeout=10)
        assert any(alive(pid) for pid in told), "the fork should still be there"
    finally:
        os.killpg(program.pid, signal.SIGKILL)
        program.wait()
        program.stdout.close()


LEAVES = """
import os, sys
import pgqrs

@pgqrs.workflow
def work() -> int:
    return 1

def main() -> None:
    with pgqrs.connect(sys.argv[1]) as store:
        with store.workers(work, processes=1):
            child = os.fork()
            if child:
                os.waitpid(child, 0)
                print(store.trigger(work).result(timeout=20))
        if not child:
            os._exit(0)

if __name__ == "__main__":
    main()
"""


def test_a_fork_that_leaves_the_block_ends_nobodys_supervisor(tmp_path: Path, sqlite_dsn: str) -> None:
    done = run(write(tmp_path, "script.py", LEAVES), sqlite_dsn, cwd=tmp_path)
    assert (done.stdout, done.returncode) == ("1\n", 0), done.stderr


def the_supervisor() -> int:
    [pid] = [pid for pid in children(os.getpid()) if is_supervisor(pid)]
    return pid


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_end_of_the_supervisor_is_raised_where_a_result_is_waited_for(
    sqlite_dsn: str, number: signal.Signals
) -> None:
    with pgqrs.connect(sqlite_dsn) as store:
        with (
            pytest.raises(pgqrs.SupervisorError, match="ended before its block did"),
            store.workers(sample.double),
        ):
            ended = the_supervisor()
            os.kill(ended, number)
            eventually(lambda: not alive(ended))
            store.trigger(sample.double, 1).result(timeout=20)
        run = store.trigger(sample.double, 2)
        with store.workers(sample.double, processes=1):  # nothing of the first is left behind
            assert run.result(timeout=20) == 4


def test_also_where_it_ends_during_the_wait(sqlite_dsn: str) -> None:
    with pgqrs.connect(sqlite_dsn) as store:
        slow = store.trigger("nobody_has_it")
        began = time.monotonic()
        with pytest.raises(pgqrs.SupervisorError, match="killed by SIGKILL"), store.workers(sample.double):
            killer = threading.Timer(0.3, os.kill, (the_supervisor(), signal.SIGKILL))
            killer.start()
            slow.result()
        killer.join()
        assert time.monotonic() - began < 10


def test_the_block_itself_tells_where_nothing_was_waited_for(sqlite_dsn: str) -> None:
    left = False
    with pgqrs.connect(sqlite_dsn) as store:
        with pytest.raises(pgqrs.SupervisorError, match=re.escape("nothing is lost")):
            with store.workers(sample.double):
                ended = the_supervisor()
                os.kill(ended, signal.SIGKILL)
                eventually(lambda: not alive(ended))
                left = True
        assert left


def test_an_exception_of_the_blocks_own_is_not_replaced(sqlite_dsn: str) -> None:
    with pgqrs.connect(sqlite_dsn) as store, pytest.raises(KeyError), store.workers(sample.double):
        os.kill(the_supervisor(), signal.SIGKILL)
        raise KeyError


def test_a_run_that_ended_before_the_supervisor_did_has_its_result(sqlite_dsn: str) -> None:
    with (
        pgqrs.connect(sqlite_dsn) as store,
        pytest.raises(pgqrs.SupervisorError, match="ended before"),
        store.workers(sample.double),
    ):
        run = store.trigger(sample.double, 3)
        assert run.result(timeout=20) == 6
        ended = the_supervisor()
        os.kill(ended, signal.SIGKILL)
        eventually(lambda: not alive(ended))
        assert run.result(timeout=20) == 6


def test_another_supervisor_of_the_same_store_keeps_waits_alive(sqlite_dsn: str) -> None:
    with pgqrs.connect(sqlite_dsn) as store, store.workers(sample.double, processes=1):
        with pytest.raises(pgqrs.SupervisorError), store.workers(sample.broken, processes=1):
            first, second = sorted(pid for pid in children(os.getpid()) if is_supervisor(pid))
            os.kill(second, signal.SIGKILL)
            eventually(lambda: not alive(second))
            assert alive(first)
            assert store.trigger(sample.double, 5).result(timeout=20) == 10


def test_an_async_wait_hears_of_it_too(sqlite_dsn: str) -> None:
    async def waits() -> None:
        async with pgqrs.connect(sqlite_dsn) as store, store.workers(sample.double, processes=1):
            os.kill(the_supervisor(), signal.SIGKILL)
            await (await store.trigger(sample.double, 1)).result(timeout=20)

    with pytest.raises(pgqrs.SupervisorError, match="ended before its block did"):
        asyncio.run(waits())


def test_an_exception_of_an_async_blocks_own_is_not_replaced_either(sqlite_dsn: str) -> None:
    async def fails() -> None:
        async with pgqrs.connect(sqlite_dsn) as store, store.workers(sample.double, processes=1):
            ended = the_supervisor()
            os.kill(ended, signal.SIGKILL)
            eventually(lambda: not alive(ended))
            raise KeyError

    with pytest.raises(KeyError):
        asyncio.run(fails())
