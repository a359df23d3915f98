"""Starts other Python processes of pgqrs, and prepares each process before it does anything else.

`supervisors` is imported from the folder that contains `pgqrs`, never by a search along `sys.path`:
a program may have a folder of that name, and the current folder may contain a `random.py`.
"""

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from msgspec import Struct

from pgqrs import errors

# The folder, or the archive, that contains both packages.
ROOT = str(Path(__file__).parent.parent.parent)

# Every process that executes user code iterates over a set of strings in the same order. A replay
# then calls the same steps in the same order in another process or on another host.
HASH_SEED_VARIABLE, HASH_SEED = "PYTHONHASHSEED", "0"

DSN_VARIABLE = "PGQRS_DSN"

# Set in a new process until pgqrs code executes in it. A program that finds it later was started in
# place of an interpreter.
STARTED_VARIABLE = "PGQRS_STARTED_BY"

# Moves folders of the user to the end of the search path, after Python's own. `sys` and `os` are
# loaded already.
BOOT = """\
import os, sys
root, main = sys.argv[1:3]
theirs = {os.path.abspath(p) for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p}
sys.path.sort(key=theirs.__contains__)
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
for name in ("pgqrs", "supervisors"):
    spec = PathFinder.find_spec(name, [root])
    if spec is None or spec.loader is None:
        sys.exit(f"pgqrs: there is no package {name!r} in {root}; install pgqrs again")
    sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
from pgqrs.program.interpreter import begin
begin(main)
"""


class Beginning(Struct, frozen=True):
    """The first line of a new process's standard input."""

    argv: list[str]
    sys_path: list[str]
    # The variables that `environ_for_start` left out.
    environ: dict[str, str]


def start(
    main: str, order: bytes, *, argv: list[str], pass_fds: tuple[int, ...], **how: Any
) -> "subprocess.Popen[bytes]":
    """Starts an interpreter that calls `main` ("module:function"). `main` reads `order` from its
    standard input.

    Raises SupervisorError if `sys.executable` is not an interpreter, because starting it would
    start this program again.
    """
    refuse_another_start()
    environ = dict(os.environ)
    beginning = Beginning(argv, absolute(sys.path), _restored(environ))
    process = subprocess.Popen(
        [sys.executable, *_flags(), "-P", "-c", BOOT, ROOT, main],
        stdin=subprocess.PIPE,
        pass_fds=pass_fds,
        env=environ_for_start(environ, bool(sys.flags.ignore_environment)),
        **how,
    )
    assert process.stdin is not None
    # If the process is dead already, the caller notices while it waits for an answer.
    with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
        stdin.write(json.dumps([beginning.argv, beginning.sys_path, beginning.environ]).encode() + b"\n")
        stdin.write(order)
    return process


def refuse_another_start() -> None:
    """Raises SupervisorError if `sys.executable` is not a Python interpreter, for example in a
    frozen program.
    """
    frozen = getattr(sys, "frozen", False) or "__compiled__" in vars(sys.modules.get("__main__", sys))
    if frozen or not sys.executable:
        raise errors.SupervisorError(
            "pgqrs starts worker processes by its Python interpreter, and this program has none: it was "
            f"frozen into one file ({sys.executable or 'unknown'}), which would start itself again. Run its "
            "workers by `pgqrs supervise` of an installed Python"
        )
    if STARTED_VARIABLE in os.environ:
        raise errors.SupervisorError(
            f"this program was started in place of a Python interpreter: {sys.executable} (sys.executable) "
            "is not one. Run workers by `pgqrs supervise` of an installed Python"
        )


def environ_for_start(environ: Mapping[str, str], ignores_environment: bool) -> dict[str, str]:
    """Returns the environment variables that a new process starts with.

    PGQRS_DSN is left out, because other processes of the same user can read the initial environment
    of a process, and PGQRS_DSN may contain a password. A process that ignores Python's variables
    (`python -E`, `-I`) gets only one of them, the hash seed, which it must not ignore.
    """
    kept = {
        name: value
        for name, value in environ.items()
        if name != DSN_VARIABLE and not (ignores_environment and name.startswith("PYTHON"))
    }
    return kept | {HASH_SEED_VARIABLE: hash_seed(environ), STARTED_VARIABLE: str(os.getpid())}


def hash_seed(environ: Mapping[str, str]) -> str:
    """Returns the user's hash seed. "random", which many container images set, counts as no seed."""
    seed = environ.get(HASH_SEED_VARIABLE, "")
    return seed if seed.isdigit() else HASH_SEED


def absolute(path: list[str]) -> list[str]:
    """Returns a search path with absolute folders, for a process in another folder or after a
    change of folder.
    """
    return list(dict.fromkeys(os.path.abspath(p) for p in path))


def _flags() -> list[str]:
    """Returns the options of this interpreter for a new one. Omits options that would make the new
    one ignore its hash seed.
    """
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    kept = [flag for flag in flags if flag not in ("-E", "-I", "-P", "-R")]
    return [*kept, "-s"] if sys.flags.no_user_site and "-s" not in kept else kept


def _restored(environ: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in environ.items()
        if name == DSN_VARIABLE or (name.startswith("PYTHON") and name != HASH_SEED_VARIABLE)
    }


# Inside the new process

# `sys.path` of the process that started this one
starters_path: list[str] = []
# the path that pgqrs's own modules are imported from
_own_path: list[str] = []


def begin(main: str) -> None:
    """Prepares a new process and then calls `main`. BOOT calls this first in each new process."""
    open_standard_descriptors()
    default_signals()
    os.environ.pop(STARTED_VARIABLE, None)
    assert sys.stdin is not None
    argv, sys_path, environ = json.loads(sys.stdin.buffer.readline())
    sys.argv = argv
    # Required modules may be in a folder that only the parent knew. It comes last, so that nothing
    # in it replaces a module of Python. The parent's order tells how to import the user's code.
    starters_path[:] = sys_path
    sys.path += [p for p in sys_path if p not in sys.path]
    _own_path[:] = sys.path
    os.environ.update(environ)
    module, _, function = main.partition(":")
    call: Callable[[], int | None] = getattr(importlib.import_module(module), function)
    sys.modules["__main__"] = ModuleType("__main__")
    sys.exit(call())


def open_standard_descriptors() -> None:
    """Opens descriptors 0 to 2 if they are closed. Otherwise a file could get one of these numbers,
    and output would overwrite the file.
    """
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            opened = os.open(os.devnull, os.O_RDONLY if fd == 0 else os.O_WRONLY)
            if opened != fd:
                os.dup2(opened, fd)
                os.close(opened)
            os.set_inheritable(fd, True)
    for name, fd in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(fd, "r" if fd == 0 else "w", closefd=False))  # noqa: SIM115


def default_signals() -> None:
    """Resets signals that were inherited from the parent. An ignored SIGCHLD or blocked signals
    would hide the end of child processes.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def above_standard(fd: int) -> int:
    """Moves a descriptor to a number above 2, and marks it to be closed on exec. If the descriptor
    was moved, the original is closed.
    """
    if fd > 2:
        return fd
    # There is no fcntl on Windows, where clients run.
    import fcntl

    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(fd)
    return moved


def pipe() -> tuple[int, int]:
    read, write = os.pipe()
    return above_standard(read), above_standard(write)


# The address of the database

_hidden_dsn: str | None = None


def hide_dsn() -> None:
    """Removes PGQRS_DSN from this process's environment, so that subprocesses of steps and crash
    reports do not contain its password. `pgqrs.connect()` still finds it.
    """
    global _hidden_dsn
    _hidden_dsn = os.environ.pop(DSN_VARIABLE, _hidden_dsn)


def dsn_of(environ: Mapping[str, str]) -> str:
    """Returns PGQRS_DSN from the environment, or its value before it was hidden, or ""."""
    return environ.get(DSN_VARIABLE) or (_hidden_dsn if environ is os.environ else None) or ""


# The name `supervisors`


def own_packages() -> None:
    """Imports pgqrs's own package `supervisors`, even if a search would find another package of
    that name.
    """
    if "supervisors" in sys.modules:
        return
    spec = PathFinder.find_spec("supervisors", [ROOT])
    if spec is None or spec.loader is None:
        raise errors.SupervisorError(f"there is no package 'supervisors' in {ROOT}; install pgqrs again")
    sys.modules["supervisors"] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules["supervisors"])


def step_aside() -> None:
    """Makes `import supervisors` import the user's package of that name, if there is one. Modules
    of pgqrs that are already imported keep their references. They import further modules inside
    `ours`.
    """
    found = PathFinder.find_spec("supervisors")
    if found is None or ROOT in (os.path.dirname(p) for p in found.submodule_search_locations or ()):
        return
    for name in _loaded():
        _aside[name] = sys.modules.pop(name)


@contextlib.contextmanager
def ours() -> Iterator[None]:
    """Inside the block, `import supervisors` imports pgqrs's package, even after `step_aside`. No
    folder of the user precedes Python's own folders.
    """
    theirs = {name: sys.modules.pop(name) for name in _loaded()} if _aside else {}
    sys.modules.update(_aside)
    path, sys.path[:] = list(sys.path), _own_path or sys.path
    try:
        yield
    finally:
        sys.path[:] = path
        if _aside:
            _aside.update({name: sys.modules.pop(name) for name in _loaded()})
            sys.modules.update(theirs)


_aside: dict[str, ModuleType] = {}


def _loaded() -> list[str]:
    return [n for n in sys.modules if n == "supervisors" or n.startswith("supervisors.")]
