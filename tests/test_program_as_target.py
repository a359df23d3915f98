"""A program's own functions in its workers: imported by its file, or sent by value where it has none."""

import os
import re
from pathlib import Path

import pytest

import pgqrs
from tests.crashes.supervised import eventually
from tests.programs import run, supervise, write

pytestmark = [pytest.mark.processes, pytest.mark.slow]

HEAD = """
import sys
import pgqrs
"""

MAIN = """
if __name__ == "__main__":
    with pgqrs.connect(sys.argv[-1]) as store, store.workers(work, processes=1):
        print(store.trigger(work).result(timeout=20))
"""

UNGUARDED = MAIN.replace('if __name__ == "__main__":', "if True:")

LAZY_MODEL = (
    HEAD
    + """
MODEL = None

def load():
    global MODEL
    MODEL = "loaded"

def predict(x):
    return f"{MODEL}:{x}"

@pgqrs.step
def first() -> str:
    load()
    return predict(1)

@pgqrs.step
def second() -> str:
    return predict(2)

@pgqrs.workflow
def work() -> list[str]:
    return [first(), second()]
"""
)

LOADED = "['loaded:1', 'loaded:2']\n"


def test_functions_of_a_script_share_its_globals(tmp_path: Path, sqlite_dsn: str) -> None:
    done = run(write(tmp_path, "script.py", LAZY_MODEL + MAIN), sqlite_dsn, cwd=tmp_path)
    assert done.stdout == LOADED, done.stderr


def test_functions_of_a_script_share_its_globals_where_one_of_them_is_asked_for_under_another_name(
    tmp_path: Path, sqlite_dsn: str
) -> None:
    script = write(tmp_path, "not a name.py", LAZY_MODEL + MAIN)
    done = run(script, sqlite_dsn, cwd=tmp_path.parent)
    assert done.stdout == LOADED, done.stderr


@pytest.mark.parametrize("way", ["stdin", "-c"])
def test_functions_that_are_in_no_file_share_their_globals(tmp_path: Path, sqlite_dsn: str, way: str) -> None:
    program = LAZY_MODEL + UNGUARDED
    done = (
        run("-", sqlite_dsn, cwd=tmp_path, stdin=program)
        if way == "stdin"
        else run("-c", program, sqlite_dsn, cwd=tmp_path)
    )
    assert done.stdout == LOADED, done.stderr


HOSTILE = """
class Proxy:
    def __getattribute__(self, name):
        raise RuntimeError("working outside of application context")
    __eq__ = __hash__ = __bool__ = __iter__ = __len__ = lambda self: self.name

class Odd:
    __module__ = property(lambda self: "elsewhere")

proxy, odd = Proxy(), Odd()
members = [proxy, odd]
by_name = {"proxy": proxy, "odd": odd}
"""


@pytest.mark.parametrize("way", ["file", "stdin", "module"])
def test_globals_that_answer_every_question_with_an_exception_do_no_harm(
    tmp_path: Path, sqlite_dsn: str, way: str
) -> None:
    """As a web framework's proxies do while there is no request."""
    program = LAZY_MODEL + HOSTILE
    if way == "stdin":
        done = run("-", sqlite_dsn, cwd=tmp_path, stdin=program + UNGUARDED)
        assert done.stdout == LOADED, done.stderr
    elif way == "file":
        done = run(write(tmp_path, "script.py", program + MAIN), sqlite_dsn, cwd=tmp_path)
        assert done.stdout == LOADED, done.stderr
    else:
        write(tmp_path, "pipeline.py", program)
        done = supervise("pipeline.py", "--workers", 1, dsn=sqlite_dsn, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr


def test_what_functions_in_no_file_do_not_use_is_not_sent(tmp_path: Path, sqlite_dsn: str) -> None:
    """Neither what cannot be sent nor what is large; and an open file keeps its contents."""
    kept = write(tmp_path, "kept.txt", "precious")
    program = LAZY_MODEL + f"""
large = bytearray(200_000_000)
unsendable = (n for n in range(3))
kept = open({str(kept)!r}, "r+")

class Erases:
    def __del__(self):
        open({str(kept)!r}, "w").close()

erases = Erases()
"""  # fmt: skip
    program += (
        UNGUARDED + f"\n    assert open({str(kept)!r}).read() == 'precious'\n    import os; os._exit(0)\n"
    )
    done = run("-u", "-", sqlite_dsn, cwd=tmp_path, stdin=program)
    assert done.stdout == LOADED, done.stderr
    assert kept.read_text() == "precious"


@pytest.mark.parametrize("mode", ["w", "r+", "r", "ab"])
def test_an_open_file_that_functions_in_no_file_use_is_refused_by_name(
    tmp_path: Path, sqlite_dsn: str, mode: str
) -> None:
    program = (
        HEAD
        + f"""
kept = open("kept.txt", {mode!r})
@pgqrs.workflow
def work() -> str:
    return str(kept.closed)
"""
        + UNGUARDED
    )
    write(tmp_path, "kept.txt", "precious")
    done = run("-", sqlite_dsn, cwd=tmp_path, stdin=program)
    assert done.returncode == 1
    assert "TargetError: the functions use the open file 'kept.txt'" in done.stderr
    assert (tmp_path / "kept.txt").read_text() == (
        "" if mode == "w" else "precious"
    )  # by the program's own open


def test_a_global_that_cannot_be_sent_is_named_with_who_uses_it(tmp_path: Path, sqlite_dsn: str) -> None:
    program = (
        HEAD
        + """
numbers = (n for n in range(3))
@pgqrs.workflow
def work() -> int:
    return next(numbers)
"""
        + UNGUARDED
    )
    done = run("-", sqlite_dsn, cwd=tmp_path, stdin=program)
    assert done.returncode == 1
    assert (
        "the global 'numbers' (generator), which work() uses, cannot be sent to another process"
        in done.stderr
    )
    assert "put the functions into a file" in done.stderr


KINDS = (
    HEAD
    + """
import enum, pickle
from dataclasses import dataclass, field
import msgspec

class Colour(enum.Enum):
    RED = "red"
    def shout(self):
        return self.value.upper()

class Point(msgspec.Struct, frozen=True, tag="p", rename="camel"):
    first_x: int
    other: list[int] = msgspec.field(default_factory=list)
    name: str = "?"
    def total(self):
        return self.first_x + sum(self.other)

@dataclass
class Line:
    points: list[Point] = field(default_factory=list)

class Base:
    def who(self):
        return "base"

class Sub(Base):
    @property
    def which(self):
        return "sub of " + super().who()

class NoStock(Exception):
    pass

def factorial(n):
    return 1 if n == 0 else n * factorial(n - 1)

def counter():
    n = 0
    def count():
        nonlocal n
        n += 1
        return n
    return count

count = counter()

@pgqrs.step
def step(line: Line) -> Line:
    assert pickle.loads(pickle.dumps(line)) == line
    assert pickle.loads(pickle.dumps(factorial)) is factorial
    return Line([*line.points, Point(factorial(3), [1], Colour.RED.shout())])

@pgqrs.workflow
def work() -> list:
    try:
        raise NoStock("tea")
    except NoStock as e:
        told = str(e)
    line = step(Line([Point(1)]))
    return [told, Sub().which, count(), count(), line.points[1].total(), line.points[1].name, line.points[0].name]
"""
)


@pytest.mark.parametrize("way", ["file", "stdin"])
def test_classes_and_closures_of_a_program_are_there_in_its_workers(
    tmp_path: Path, sqlite_dsn: str, way: str
) -> None:
    if way == "file":
        done = run(write(tmp_path, "script.py", KINDS + MAIN), sqlite_dsn, cwd=tmp_path)
    else:
        done = run("-", sqlite_dsn, cwd=tmp_path, stdin=KINDS + UNGUARDED)
    assert done.stdout == "['tea', 'sub of base', 1, 2, 7, 'RED', '?']\n", done.stderr


POOL = (
    HEAD
    + """
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor

class Value:
    def __init__(self, n):
        self.n = n

def double(value):
    return Value(value.n * 2)

@pgqrs.step
def spread(method: str) -> list[int]:
    with ProcessPoolExecutor(2, multiprocessing.get_context(method)) as pool:
        return [v.n for v in pool.map(double, [Value(n) for n in range(3)])]

@pgqrs.step
def pickled() -> str:
    return pickle.dumps(Value(7)).hex()

@pgqrs.workflow
def work() -> list:
    return [*(spread(method) for method in ("fork", "spawn", "forkserver")), pickled()]
"""
)


def test_a_step_may_use_a_pool_of_processes_with_the_scripts_own_functions(
    tmp_path: Path, sqlite_dsn: str
) -> None:
    end = """
if __name__ == "__main__":
    with pgqrs.connect(sys.argv[-1]) as store, store.workers(work, processes=1):
        *lists, pickled = store.trigger(work).result(timeout=40)
        print(lists, pickle.loads(bytes.fromhex(pickled)).n)
"""
    done = run(write(tmp_path, "script.py", POOL + end), sqlite_dsn, cwd=tmp_path)
    assert done.stdout == "[[0, 2, 4], [0, 2, 4], [0, 2, 4]] 7\n", done.stderr


def test_a_step_of_a_file_target_may_use_a_pool_of_processes(tmp_path: Path, sqlite_dsn: str) -> None:
    write(tmp_path, "pipeline.py", POOL)
    with pgqrs.connect(sqlite_dsn) as store:
        handle = store.trigger("work")
        done = supervise("pipeline.py", "--workers", 1, dsn=sqlite_dsn, cwd=tmp_path)
        assert handle.result(0)[:3] == [[0, 2, 4]] * 3, done.stdout


def test_a_program_that_python_m_runs_has_its_package_in_its_workers(tmp_path: Path, sqlite_dsn: str) -> None:
    write(tmp_path, "shop/__init__.py", "")
    write(tmp_path, "shop/prices.py", "tea = 3")
    program = HEAD + "from .prices import tea\n@pgqrs.workflow\ndef work() -> int:\n    return tea\n" + MAIN
    for name, target in (("run", "shop.run"), ("__main__", "shop")):
        write(tmp_path, f"shop/{name}.py", program)
        done = run("-m", target, sqlite_dsn, cwd=tmp_path)
        assert done.stdout == "3\n", done.stderr


TELLS = HEAD + """
print("imported", flush=True)
@pgqrs.workflow
def work() -> int:
    return 1
"""  # fmt: skip


@pytest.mark.parametrize(
    "end",
    [
        UNGUARDED,
        "with pgqrs.connect(sys.argv[-1]) as store:\n    store.trigger(work)\n    with store.workers(work):\n        pass",
        "def main():\n    with pgqrs.connect(sys.argv[-1]) as s, s.workers(work):\n        pass\nmain()",
        "import asyncio\nasync def main():\n    async with pgqrs.connect(sys.argv[-1]) as s, s.workers(work):\n"
        "        pass\nasyncio.run(main())",
    ],
)
def test_workers_without_a_guard_are_refused_before_the_script_is_imported_again(
    tmp_path: Path, sqlite_dsn: str, end: str
) -> None:
    done = run(write(tmp_path, "script.py", TELLS + end), sqlite_dsn, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout == "imported\n"
    assert "ValidationError: store.workers() stands in" in done.stderr
    assert "under `if __name__ == '__main__':`" in done.stderr


@pytest.mark.parametrize("test", ['__name__ == "__main__"', '"__main__" == __name__ and True'])
def test_a_guard_around_a_call_of_main_is_seen(tmp_path: Path, sqlite_dsn: str, test: str) -> None:
    end = f"def main():\n    with pgqrs.connect(sys.argv[-1]) as s, s.workers(work):\n        pass\nif {test}:\n    main()\n"
    done = run(write(tmp_path, "script.py", TELLS + end), sqlite_dsn, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_script_without_a_guard_may_run_workers_of_another_module(tmp_path: Path, sqlite_dsn: str) -> None:
    write(tmp_path, "jobs.py", TELLS)
    end = "with pgqrs.connect(sys.argv[-1]) as s, s.workers(jobs.work):\n    print(s.trigger(jobs.work).result(20))\n"
    done = run(write(tmp_path, "script.py", HEAD + "import jobs\n" + end), sqlite_dsn, cwd=tmp_path)
    assert done.stdout.endswith("1\n"), done.stderr


@pytest.mark.parametrize(
    "opens",
    ['open("kept.txt", "w").write("x")', 'from pathlib import Path; Path("kept.txt").write_text("x")',
     'import logging; logging.basicConfig(filename="kept.txt", filemode="w")'],
)  # fmt: skip
def test_a_script_whose_import_would_empty_a_file_that_it_wrote_is_refused(
    tmp_path: Path, sqlite_dsn: str, opens: str
) -> None:
    end = MAIN.replace(
        "with pgqrs",
        "open('kept.txt', 'w').write('precious'); import logging; logging.shutdown()\n    with pgqrs",
    )
    done = run(write(tmp_path, "script.py", TELLS + opens + "\n" + end), sqlite_dsn, cwd=tmp_path)
    assert re.search(
        r"script.py, line \d+, opens '.*kept.txt' for writing whenever the file is imported", done.stderr
    )
    assert (tmp_path / "kept.txt").read_text() == "precious"


def test_a_function_under_the_guard_is_missed_with_words(tmp_path: Path, sqlite_dsn: str) -> None:
    inner = "\n    @pgqrs.workflow\n    def late() -> int:\n        return 1\n    with pgqrs"
    end = MAIN.replace("\n    with pgqrs", inner).replace("workers(work", "workers(late")
    done = run(write(tmp_path, "script.py", TELLS + end), sqlite_dsn, cwd=tmp_path)
    assert "no workflow or handler named 'late'; there is: work; a function under `if __name__" in done.stderr


def test_functions_sent_by_value_leave_no_file_behind(tmp_path: Path, sqlite_dsn: str) -> None:
    (tmp_path / "tmp").mkdir()
    program = LAZY_MODEL + UNGUARDED + "        import os; os.kill(os.getpid(), 9)\n"
    done = run("-", sqlite_dsn, cwd=tmp_path, stdin=program, env={"TMPDIR": str(tmp_path / "tmp")})
    assert done.returncode == -9
    eventually(lambda: not os.listdir(tmp_path / "tmp"), timeout=15)


def test_a_module_target_keeps_an_empty_main(tmp_path: Path, sqlite_dsn: str) -> None:
    """A pool of processes in a step must not import a command line."""
    body = "import sys, pgqrs\n@pgqrs.workflow\ndef work() -> bool:\n    return hasattr(sys.modules['__main__'], '__file__')\n"
    write(tmp_path, "jobs.py", body)
    with pgqrs.connect(sqlite_dsn) as store:
        handle = store.trigger("work")
        supervise("jobs", "--workers", 1, dsn=sqlite_dsn, cwd=tmp_path)
        assert handle.result(0) is False


def test_a_pydantic_model_in_no_file_is_refused_by_its_name(tmp_path: Path, sqlite_dsn: str) -> None:
    head = HEAD + "import pydantic\nclass Order(pydantic.BaseModel):\n    n: int = 3\n"
    body = "@pgqrs.workflow\ndef work() -> int:\n    return Order().n\n"
    refused = run("-", sqlite_dsn, cwd=tmp_path, stdin=head + body + UNGUARDED)
    assert "the pydantic model Order is in no file" in refused.stderr
    write(tmp_path, "orders.py", head)
    done = run("-", sqlite_dsn, cwd=tmp_path, stdin=HEAD + "from orders import Order\n" + body + UNGUARDED)
    assert done.stdout == "3\n", done.stderr
