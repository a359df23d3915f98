"""How the processes of a supervisor begin: whatever lies in the folder, and whatever their parent left them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import pgqrs
from pgqrs import errors
from pgqrs.program import interpreter
from tests.programs import run, supervise, write

pytestmark = [pytest.mark.processes, pytest.mark.slow]

METHODS = ["fork", "spawn"]

WORK = """
import os, sys
import pgqrs

@pgqrs.workflow
def work() -> str:
    return {returns}
"""

SCRIPT = (
    WORK
    + """
if __name__ == "__main__":
    with pgqrs.connect(sys.argv[-1]) as store, store.workers(work, processes=1):
        print(store.trigger(work).result(timeout=20))
"""
)


def supervised(dsn: str, cwd: Path, *options: object, target: str = "pipeline.py", **how: object) -> object:
    """What `work` returned, run by a supervisor of its own."""
    with pgqrs.connect(dsn) as store:
        handle = store.trigger("work")
        done = supervise(target, "--workers", 1, *options, dsn=dsn, cwd=cwd, **how)
        assert done.returncode == 0, done.stdout + done.stderr
        return handle.result(0)


# The order of sets


NAMES = "{'alpha', 'beta', 'gamma', 'delta', 'epsilon', 'zeta', 'eta', 'theta'}"
ORDER = f"' '.join({NAMES})"


def order(tmp_path: Path, dsn: str, *options: object, **how: object) -> object:
    write(tmp_path, "pipeline.py", WORK.format(returns=ORDER))
    return supervised(dsn, tmp_path, *options, **how)


@pytest.mark.parametrize("given", [None, "random", "", "41"])
def test_all_workers_walk_over_a_set_of_text_in_the_same_order(
    tmp_path: Path, sqlite_dsn: str, monkeypatch: pytest.MonkeyPatch, given: str | None
) -> None:
    """Also those of another supervisor, those that are spawned, and those of a program that was started with `python -I`."""
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    env = {} if given is None else {"PYTHONHASHSEED": given}
    found = {order(tmp_path, sqlite_dsn, "--start-method", method, env=env) for method in METHODS * 2}
    script = write(tmp_path, "script.py", SCRIPT.format(returns=ORDER))
    if given != "41":  # which -I ignores
        path = f"import sys; sys.path.insert(0, {str(Path(pgqrs.__file__).parent.parent)!r}); "
        isolated = f"{path}sys.argv = ['', {sqlite_dsn!r}]; import runpy; runpy.run_path({str(script)!r}, run_name='__main__')"
        done = run("-c", isolated, cwd=tmp_path, options=["-I"], env=env)
        assert done.stderr == ""
        found.add(done.stdout.strip())
    seed = "0" if given != "41" else given
    ordinary = run("-c", f"print({ORDER})", cwd=tmp_path, env={"PYTHONHASHSEED": seed})
    assert found == {ordinary.stdout.strip()}


def test_a_process_that_a_step_starts_walks_in_that_order_too(tmp_path: Path, sqlite_dsn: str) -> None:
    inner = f"print({ORDER})"
    body = f"__import__('subprocess').check_output([sys.executable, '-c', {inner!r}], text=True).strip()"
    write(tmp_path, "pipeline.py", WORK.format(returns=body))
    assert supervised(sqlite_dsn, tmp_path) == order(tmp_path, sqlite_dsn)


def test_a_nursery_that_is_started_again_has_the_seed_of_the_first() -> None:
    assert interpreter.hash_seed({}) == interpreter.hash_seed({"PYTHONHASHSEED": "random"}) == "0"
    assert interpreter.hash_seed({"PYTHONHASHSEED": "7"}) == "7"
    env = interpreter.environ_for_start({"PYTHONHASHSEED": "7", "PYTHONPATH": "x", "A": "b"}, True)
    assert env == {"PYTHONHASHSEED": "0", "A": "b", "PGQRS_STARTED_BY": str(os.getpid())} | {
        "PYTHONHASHSEED": env["PYTHONHASHSEED"]
    }


# What lies in the folder

STRAYS = (
    "random",
    "json",
    "socket",
    "logging",
    "msgspec",
    "greenlet",
    "asyncio",
    "dill",
    "pgqrs",
    "selectors",
)


def strew(folder: Path) -> None:
    for name in STRAYS:
        write(folder, f"{name}.py", f"raise SystemExit('the stray {name}.py was imported')")
    write(folder, "supervisors/__init__.py", "raise SystemExit('the stray supervisors was imported')")


ASYNC = """
import pgqrs
@pgqrs.workflow
async def work() -> str:
    return "done"
"""


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("target", ["pipeline.py", "pipeline"])
@pytest.mark.parametrize("text", [WORK.format(returns="'done'"), ASYNC], ids=["plain", "async"])
def test_files_in_the_current_folder_take_no_place_of_ours(
    tmp_path: Path, sqlite_dsn: str, method: str, target: str, text: str
) -> None:
    """With `python -P`, as the command `pgqrs` has it: the folder of a command is no folder of the user's."""
    strew(tmp_path)
    write(tmp_path, "pipeline.py", text.replace("import os, sys\n", ""))
    how = ("--start-method", method)
    assert supervised(sqlite_dsn, tmp_path, *how, target=target, options=["-P"]) == "done"


def test_nor_with_python_m_but_for_what_python_itself_imports_before_us(
    tmp_path: Path, sqlite_dsn: str
) -> None:
    strew(tmp_path)
    (tmp_path / "pgqrs.py").unlink()
    write(tmp_path, "pipeline.py", WORK.format(returns="'done'"))
    assert supervised(sqlite_dsn, tmp_path) == "done"


def test_nor_do_those_in_a_folder_of_pythonpath_once_the_supervisor_runs(
    tmp_path: Path, sqlite_dsn: str
) -> None:
    """A supervisor of the library's own is started with that variable."""
    write(tmp_path, "strays/random.py", "raise SystemExit('the stray random.py was imported')")
    write(
        tmp_path, "strays/supervisors/__init__.py", "raise SystemExit('the stray supervisors was imported')"
    )
    text = "import sys, random\nsys.path.insert(0, 'strays')\n" + SCRIPT.format(returns="'done'")
    text = text.replace("with pgqrs", "import os; os.environ['PYTHONPATH'] = 'strays'\n    with pgqrs")
    done = run(write(tmp_path, "script.py", text), sqlite_dsn, cwd=tmp_path)
    assert done.stdout == "done\n", done.stderr


def test_a_variable_pythonpath_still_comes_first_for_what_the_user_imports(
    tmp_path: Path, sqlite_dsn: str
) -> None:
    write(tmp_path, "newer/attr/__init__.py", "where = 'newer'")
    body = WORK.format(returns="__import__('attr').where")
    write(tmp_path, "pipeline.py", body)
    for method in METHODS:
        env = {"PYTHONPATH": str(tmp_path / "newer")}
        assert supervised(sqlite_dsn, tmp_path, "--start-method", method, env=env) == "newer"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("text", [WORK, WORK.replace("def work", "async def work")], ids=["plain", "async"])
def test_the_users_own_package_supervisors_is_what_their_code_imports(
    tmp_path: Path, sqlite_dsn: str, method: str, text: str
) -> None:
    write(tmp_path, "supervisors/__init__.py", "")
    write(tmp_path, "supervisors/people.py", "names = 'ada'")
    write(tmp_path, "supervisors/worker.py", "names = 'grace'")
    body = "__import__('supervisors.worker').worker.names + names"
    write(tmp_path, "pipeline.py", "from supervisors.people import names\n" + text.format(returns=body))
    assert supervised(sqlite_dsn, tmp_path, "--start-method", method) == "graceada"


def test_also_in_a_script_with_workers_of_its_own(tmp_path: Path, sqlite_dsn: str) -> None:
    write(tmp_path, "supervisors/__init__.py", "")
    write(tmp_path, "supervisors/people.py", "names = 'ada'")
    text = "from supervisors.people import names\n" + SCRIPT.format(returns="names")
    done = run(write(tmp_path, "script.py", text), sqlite_dsn, cwd=tmp_path)
    assert done.stdout == "ada\n", done.stderr


def test_a_target_may_be_named_supervisors(tmp_path: Path, sqlite_dsn: str) -> None:
    write(tmp_path, "supervisors.py", WORK.format(returns="__name__"))
    for target in ("supervisors.py", "supervisors"):
        assert supervised(sqlite_dsn, tmp_path, target=target) == "supervisors"


def test_a_folder_supervisors_that_python_does_not_find_is_told(tmp_path: Path, sqlite_dsn: str) -> None:
    write(tmp_path, "supervisors/people.py", "names = 'ada'")
    write(tmp_path, "pipeline.py", "from supervisors.people import names\n" + WORK.format(returns="names"))
    done = supervise("pipeline.py", dsn=sqlite_dsn, cwd=tmp_path)
    assert done.returncode == 2
    assert "without an __init__.py: put one into yours" in done.stderr


@pytest.mark.parametrize("name", ["json", "pgqrs", "signal"])
def test_a_target_with_the_name_of_a_module_that_is_there_is_refused(
    tmp_path: Path, sqlite_dsn: str, name: str
) -> None:
    write(tmp_path, f"{name}.py", WORK.format(returns="1"))
    done = supervise(f"{name}.py", dsn=sqlite_dsn, cwd=tmp_path, options=["-P"])
    assert done.returncode == 2
    assert f"would be imported as {name!r}" in done.stderr
    assert "rename the file" in done.stderr


# What the parent left


@pytest.mark.parametrize("closed", ["<&-", "<&- >&-", "<&- >&- 2>&-", ">&- 2>&-", "2>&-"])
def test_a_supervisor_starts_without_standard_descriptors(
    tmp_path: Path, sqlite_dsn: str, closed: str
) -> None:
    write(tmp_path, "pipeline.py", WORK.format(returns="'done'"))
    with pgqrs.connect(sqlite_dsn) as store:
        handle = store.trigger("work")
    command = (
        f'"{sys.executable}" -m pgqrs supervise pipeline.py --burst --workers 1 --dsn "{sqlite_dsn}" {closed}'
    )
    assert subprocess.run(command, shell=True, cwd=tmp_path, timeout=30, check=False).returncode == 0
    with pgqrs.connect(sqlite_dsn) as store:
        assert store.run(handle.id).result(0) == "done"


def test_a_script_starts_workers_without_standard_descriptors(tmp_path: Path, sqlite_dsn: str) -> None:
    text = SCRIPT.format(returns="'done'").replace("print(", "open('told', 'w').write(")
    write(tmp_path, "script.py", text)
    command = f'"{sys.executable}" script.py "{sqlite_dsn}" <&- >&- 2>&-'
    assert subprocess.run(command, shell=True, cwd=tmp_path, timeout=30, check=False).returncode == 0
    assert (tmp_path / "told").read_text() == "done"


IGNORES_CHILDREN = """
import os, signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
"""

REAPS_CHILDREN = """
import os, signal
def reap(*_):
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
signal.signal(signal.SIGCHLD, reap)
"""


@pytest.mark.parametrize("handler", [IGNORES_CHILDREN, REAPS_CHILDREN], ids=["ignores", "reaps"])
@pytest.mark.parametrize("method", METHODS)
def test_a_module_that_looks_after_children_itself_gets_its_workers(
    tmp_path: Path, sqlite_dsn: str, handler: str, method: str
) -> None:
    """And its workers have its handler, as its program has."""
    body = WORK.format(returns="str(signal.getsignal(signal.SIGCHLD))")
    write(tmp_path, "pipeline.py", handler + body)
    found = supervised(sqlite_dsn, tmp_path, "--start-method", method)
    assert ("function reap" in str(found)) if handler is REAPS_CHILDREN else (found == str(signal.SIG_IGN))


def test_a_script_that_ignores_its_children_gets_its_workers(tmp_path: Path, sqlite_dsn: str) -> None:
    text = IGNORES_CHILDREN + SCRIPT.format(returns="'done'")
    done = run(write(tmp_path, "script.py", text), sqlite_dsn, cwd=tmp_path)
    assert done.stdout == "done\n", done.stderr


def test_a_supervisor_whose_parent_ignores_children_and_blocks_signals_drains(
    tmp_path: Path, sqlite_dsn: str
) -> None:
    write(tmp_path, "pipeline.py", WORK.format(returns="'done'"))

    def leave() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGCHLD])

    command = [
        sys.executable,
        "-m",
        "pgqrs",
        "supervise",
        "pipeline.py",
        "--workers",
        "1",
        "--dsn",
        sqlite_dsn,
    ]
    with (
        pgqrs.connect(sqlite_dsn) as store,
        subprocess.Popen(command, cwd=tmp_path, preexec_fn=leave) as supervisor,
    ):
        try:
            assert store.trigger("work").result(20) == "done"
            supervisor.send_signal(signal.SIGTERM)
            assert supervisor.wait(20) == 0
        finally:
            supervisor.kill()


# Programs that have no interpreter


FROZEN = """
import sys
sys.frozen = True
"""


def test_a_frozen_program_is_refused_before_it_starts_itself(tmp_path: Path, sqlite_dsn: str) -> None:
    done = run(write(tmp_path, "script.py", FROZEN + SCRIPT.format(returns="1")), sqlite_dsn, cwd=tmp_path)
    assert done.returncode == 1
    assert "SupervisorError: pgqrs starts worker processes by its Python interpreter" in done.stderr


def test_a_program_in_the_interpreters_place_is_started_once(tmp_path: Path, sqlite_dsn: str) -> None:
    """One that says nothing of being frozen: it is found out by the mark that its second start carries."""
    count = tmp_path / "starts"
    script = write(
        tmp_path,
        "script.py",
        f"open({str(count)!r}, 'a').write('x')\n" + SCRIPT.format(returns="1") + "    sys.exit()\n",
    )
    program = write(tmp_path, "program", f"#!/bin/sh\nexec {sys.executable} {script} {sqlite_dsn}\n")
    program.chmod(0o755)
    text = script.read_text().replace(
        "import os, sys\n", f"import os, sys\nsys.executable = {str(program)!r}\n"
    )
    script.write_text(text)
    done = run(script, sqlite_dsn, cwd=tmp_path)
    assert done.returncode == 1
    assert "was started in place of a Python interpreter" in done.stderr
    assert count.read_text() == "xx"


PATCHED = """
import sys, types
{package} = sys.modules["{package}"] = types.ModuleType("{package}")
monkey = sys.modules["{package}.{module}"] = types.ModuleType("{package}.{module}")
monkey.{attribute} = {{"socket": 1}}
"""


@pytest.mark.parametrize(
    ("package", "module", "attribute"),
    [("gevent", "monkey", "saved"), ("eventlet", "patcher", "already_patched")],
)
def test_monkey_patching_is_refused_with_the_reason(
    tmp_path: Path, sqlite_dsn: str, package: str, module: str, attribute: str
) -> None:
    patched = PATCHED.format(package=package, module=module, attribute=attribute)
    write(tmp_path, "pipeline.py", patched + WORK.format(returns="1"))
    for method in METHODS:
        done = supervise("pipeline.py", "--start-method", method, dsn=sqlite_dsn, cwd=tmp_path)
        assert done.returncode == 2
        assert f"the monkey patching of {package}" in done.stderr


# The address of the database


READS = "repr((os.environ.get('PGQRS_DSN'), SEEN, os.popen('echo $PGQRS_DSN').read().strip(), open('/proc/self/environ').read().count('PGQRS_DSN')))"


@pytest.mark.parametrize("method", METHODS)
def test_the_address_is_in_no_workers_environment_and_known_to_connect(
    tmp_path: Path, sqlite_dsn: str, method: str
) -> None:
    """A module may read it while it is imported; a step and what it starts have it no more."""
    seen = "import os\nSEEN = os.environ.get('PGQRS_DSN')\n"
    write(tmp_path, "pipeline.py", seen + WORK.format(returns=READS))
    env = {"PGQRS_DSN": sqlite_dsn}
    found = supervised(sqlite_dsn, tmp_path, "--start-method", method, env=env)
    assert found == repr((None, sqlite_dsn, "", 0))
    for say in (
        "pgqrs.connect()",
        "pgqrs.connect_with(pgqrs.Config.load())",
        "pgqrs.connect_with(pgqrs.Config.from_env())",
    ):
        write(tmp_path, "pipeline.py", WORK.format(returns=f"{say}.open().config.dsn"))
        assert supervised(sqlite_dsn, tmp_path, "--start-method", method, env=env) == sqlite_dsn


# The end


ATEXIT = """
import atexit, os, pathlib, tempfile, weakref
FOLDER = pathlib.Path(tempfile.mkdtemp(dir=os.getcwd(), prefix="temporary"))
atexit.register(lambda: FOLDER.rmdir())
atexit.register(lambda: pathlib.Path("imported").open("a").write("x"))

def leave(name):
    atexit.register(lambda: pathlib.Path(name).open("a").write("x"))
    return FOLDER.exists()
"""


def test_what_is_registered_with_atexit_is_called_once_by_the_process_it_was_registered_in(
    tmp_path: Path, sqlite_dsn: str
) -> None:
    write(tmp_path, "pipeline.py", ATEXIT + WORK.format(returns="str(leave('worker'))"))
    assert supervised(sqlite_dsn, tmp_path) == "True"
    assert (tmp_path / "imported").read_text() == "x"
    assert (tmp_path / "worker").read_text() == "x"
    assert not list(tmp_path.glob("temporary*"))


def test_a_worker_that_is_replaced_leaves_as_a_program_does_and_keeps_no_other_from_its_files(
    tmp_path: Path, sqlite_dsn: str
) -> None:
    write(tmp_path, "pipeline.py", ATEXIT + WORK.format(returns="str(leave('worker'))"))
    with pgqrs.connect(sqlite_dsn) as store:
        handles = [store.trigger("work") for _ in range(3)]
        options = ("--workers", 1, "--max-runs-per-worker", 1, "--lanes", 1)
        supervise("pipeline.py", *options, dsn=sqlite_dsn, cwd=tmp_path)
        assert [h.result(0) for h in handles] == ["True"] * 3
    assert (tmp_path / "worker").read_text() == "xxx"
    assert (tmp_path / "imported").read_text() == "x"


def test_what_takes_too_long_at_the_end_is_ended(tmp_path: Path, sqlite_dsn: str) -> None:
    sleeps = "import atexit, time\natexit.register(time.sleep, 60)\n"
    body = "str(__import__('atexit').register(__import__('time').sleep, 60))"
    write(tmp_path, "pipeline.py", sleeps + WORK.format(returns=body))
    began = time.monotonic()
    supervised(sqlite_dsn, tmp_path)
    assert time.monotonic() - began < 20


def test_a_closed_stream_of_this_process_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    interpreter.open_standard_descriptors()
    assert sys.stdout is not None
    assert sys.stdout.fileno() == 1


def test_no_interpreter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "")
    with pytest.raises(errors.SupervisorError, match="this program has none"):
        interpreter.refuse_another_start()
