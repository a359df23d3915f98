"""What an import leaves that all forked workers would share: told by name, and random numbers made different."""

import random
import socket
import sys
import textwrap
import threading
import types
from pathlib import Path

import pytest

import pgqrs
from supervisors.births import inherited
from tests.programs import run, supervise, write

pytestmark = [pytest.mark.processes, pytest.mark.slow]

WORK = """
import os, random, socket, sys, threading, time, types
import pgqrs

@pgqrs.workflow
def work() -> float:
    return 1.0
"""


def told(tmp_path: Path, dsn: str, text: str, *options: str) -> str:
    """What a supervisor of this module says at its start."""
    write(tmp_path, "pipeline.py", WORK + textwrap.dedent(text))
    done = supervise("pipeline.py", "--workers", 1, *options, dsn=dsn, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# Descriptors


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("LISTENER = socket.create_server(('127.0.0.1', 0))\nCONN = socket.create_connection(LISTENER.getsockname())",
         "warning: pipeline.CONN: a connection to 127.0.0.1:"),
        ("LISTENER = socket.create_server(('127.0.0.1', 0))", "warning: pipeline.LISTENER: a socket on 127.0.0.1:"),
        ("def deep():\n    a, b = socket.socketpair()\n    return [[a, b]]\nDEEP = deep()", "warning: a connection to an unnamed socket"),
        ("class Client:\n    def __init__(self):\n        self.sock = socket.socket()\n    def fileno(self):\n"
         "        return self.sock.fileno()\nCLIENT = Client()", "warning: pipeline.CLIENT: a socket on"),
        ("F = open(__file__)", "warning: pipeline.F: the file "),
        ("import sqlite3\nDB = sqlite3.connect('x.db')\nDB.execute('create table if not exists t (x)')", "x.db was opened while the module"),
        ("R, W = os.pipe()", "warning: a pipe was opened"),
        ("import select\nE = select.epoll()", "warning: pipeline.E: an event loop's descriptor"),
    ],
)  # fmt: skip
def test_what_an_import_opens_is_told_with_the_global_that_holds_it(
    tmp_path: Path, sqlite_dsn: str, text: str, said: str
) -> None:
    assert said in told(tmp_path, sqlite_dsn, text)
    assert "warning" not in told(tmp_path, sqlite_dsn, text, "--start-method", "spawn")


@pytest.mark.parametrize(
    "text",
    [
        "NULL = open(os.devnull, 'w')\nCHANCE = open('/dev/urandom', 'rb')",
        "LOG = open('app.log', 'a')",
        "import logging\nlogging.basicConfig(filename='app.log')",
        "with open(__file__) as f:\n    f.read()\nwith socket.socket() as s:\n    pass",
        "class Proxy:\n    def __getattr__(self, name):\n        raise RuntimeError(name)\nPROXY = Proxy()",
    ],
)
def test_what_does_no_harm_is_not_told(tmp_path: Path, sqlite_dsn: str, text: str) -> None:
    assert "warning" not in told(tmp_path, sqlite_dsn, text)


def test_there_is_a_bound_to_what_is_told(tmp_path: Path, sqlite_dsn: str) -> None:
    said = told(tmp_path, sqlite_dsn, "MANY = [socket.socket() for _ in range(100)]")
    assert said.count("was opened while") == inherited.WARNINGS_MAX
    assert "warning: and 80 more of the kind" in said


def test_a_script_with_workers_of_its_own_is_told_too(tmp_path: Path, sqlite_dsn: str) -> None:
    text = (
        WORK
        + """
RNG = random.Random()
SOCK = socket.socket()
if __name__ == "__main__":
    with pgqrs.connect(sys.argv[-1]) as store, store.workers(work, processes=1):
        pass
"""
    )
    done = run(write(tmp_path, "script.py", text), sqlite_dsn, cwd=tmp_path)
    assert "warning: __main__.SOCK: a socket" in done.stdout
    assert "warning: __main__.RNG (random.Random)" in done.stdout


# Random numbers


STANDIN = """
numpy = sys.modules["numpy"] = types.ModuleType("numpy")
numpy.random = sys.modules["numpy.random"] = types.ModuleType("numpy.random")
class RandomState:
    def __init__(self):
        self.state = 0
    def seed(self):
        self.state = int.from_bytes(os.urandom(6), "big")
RandomState.__module__ = "numpy.random"
RandomState.__qualname__ = "RandomState"
GLOBAL = RandomState()
numpy.random.seed = GLOBAL.seed

@pgqrs.workflow
def draw() -> list:
    time.sleep(0.3)
    return [os.getpid(), GLOBAL.state, random.random()]
"""


def test_the_global_generators_differ_in_each_worker(tmp_path: Path, sqlite_dsn: str) -> None:
    """Of `random`, and of numpy where it is loaded (here a stand-in for it)."""
    write(tmp_path, "pipeline.py", WORK + STANDIN)
    with pgqrs.connect(sqlite_dsn) as store:
        runs = [store.trigger("draw") for _ in range(4)]
        supervise("pipeline.py:draw", "--workers", 2, "--lanes", 1, dsn=sqlite_dsn, cwd=tmp_path)
        drawn = [r.result(0) for r in runs]
    workers = {pid for pid, _, _ in drawn}
    assert len(workers) == 2
    assert len({state for _, state, _ in drawn}) == 2
    assert len({number for _, _, number in drawn}) == 4


def test_torch_is_seeded_where_it_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    seeded = []
    for name in ("numpy.random", "torch"):
        module = types.ModuleType(name)
        module.seed = lambda name=name: seeded.append(name)
        monkeypatch.setitem(sys.modules, name, module)
    inherited.reseed()
    assert seeded == ["numpy.random", "torch"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("RNG = random.Random(3)", "pipeline.RNG (random.Random)"),
        ("STREAMS = {'a': random.Random()}", "pipeline.STREAMS['a'] (random.Random)"),
        ("STREAMS = [random.Random()]", "pipeline.STREAMS[0] (random.Random)"),
        ("class Dice:\n    rng = random.Random()", "pipeline.Dice.rng (random.Random)"),
        ("class Dice:\n    def __init__(self):\n        self.rng = random.Random()\nDICE = Dice()", "pipeline.DICE.rng (random.Random)"),
        ("class Mine(random.Random):\n    pass\nRNG = Mine()", "pipeline.RNG (pipeline.Mine)"),
        ("class Generator:\n    pass\nGenerator.__module__ = 'numpy.random._generator'\nRNG = Generator()",
         "pipeline.RNG (numpy.random.Generator)"),
        ("import numpy\nRNG = numpy.random.default_rng(3)", "pipeline.RNG (numpy.random.Generator)"),
        ("class Generator:\n    pass\nGenerator.__module__ = 'torch._C'\nRNG = Generator()", "pipeline.RNG (torch.Generator)"),
    ],
)  # fmt: skip
def test_a_generator_in_a_global_is_told(tmp_path: Path, sqlite_dsn: str, text: str, said: str) -> None:
    found = told(tmp_path, sqlite_dsn, text)
    assert f"warning: {said} was made while the module was imported, and every worker draws the same" in found


@pytest.mark.parametrize(
    "text",
    [
        "RNG = random.SystemRandom()",
        "draw = random.random",
        "from random import _inst",
        "RNG = random.Random",
        "from numpy.random.mtrand import _rand as RNG",
    ],
)
def test_what_draws_different_numbers_is_not_told(tmp_path: Path, sqlite_dsn: str, text: str) -> None:
    assert "warning" not in told(tmp_path, sqlite_dsn, text)


# Threads


def test_a_thread_of_the_modules_own_is_told_by_its_name(tmp_path: Path, sqlite_dsn: str) -> None:
    text = "T = threading.Thread(target=time.sleep, args=(60,), daemon=True, name='ticker')\nT.start()"
    assert "1 thread started while importing, by thread 'ticker': not there in forked" in told(
        tmp_path, sqlite_dsn, text
    )
    assert "while importing" not in told(tmp_path, sqlite_dsn, text, "--start-method", "spawn")


@pytest.mark.parametrize(
    ("maker", "count"), [("numpy", 0), ("scipy.linalg", 0), ("grpc", 3), ("numpywrong", 3)]
)
def test_threads_of_a_library_that_looks_after_them_are_not_counted(
    monkeypatch: pytest.MonkeyPatch, maker: str, count: int
) -> None:
    there = [1]
    monkeypatch.setattr(inherited, "_threads", lambda: there[0])
    watch = inherited.ThreadWatch()
    sys.audit("import", maker, None, None, None, None)
    there[0] = 4
    sys.audit("import", "another", None, None, None, None)
    found, makers = watch.found()
    assert (found, makers) == (count, (maker,) if count else ())


def test_a_thread_of_pythons_is_counted_whatever_import_came_before_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watch = inherited.ThreadWatch()
    sys.audit("import", "numpy", None, None, None, None)
    done = threading.Event()
    thread = threading.Thread(target=done.wait, name="of-this-test")
    thread.start()
    try:
        count, makers = watch.found()
    finally:
        done.set()
        thread.join()
    assert count == 1
    assert "thread 'of-this-test'" in makers


def test_a_descriptor_that_was_closed_and_opened_again_is_another() -> None:
    with socket.socket() as first:
        fd = first.fileno()
        before = inherited._descriptors()[fd]
    with socket.socket() as second:
        assert second.fileno() == fd
        assert inherited._descriptors()[fd] != before


def test_the_module_random_is_seeded() -> None:
    random.seed(1)
    first = random.random()
    random.seed(1)
    inherited.reseed()
    assert random.random() != first
