"""Detects objects that the import of the user's module leaves in a process, and that its forked
workers would share although each worker should have its own.

The global random number generators are seeded again. The supervisor warns of threads, descriptors
and other generators at startup.
"""

import os
import random
import socket
import stat
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from types import FunctionType, ModuleType
from typing import Any

from msgspec import Struct

from pgqrs import errors

# The most warnings of a kind.
WARNINGS_MAX = 20
# The most members of a global that are searched.
SEARCHED_MAX = 1000

# Their libraries (OpenBLAS) end their threads before a fork and start them again afterwards.
FORK_SAFE = ("numpy", "scipy")

# joblib seeds itself in each process. scipy and sklearn use numpy's global generator, which is
# seeded again.
NOT_THEIRS = {
    *sys.stdlib_module_names,
    "pgqrs",
    "supervisors",
    "numpy",
    "torch",
    "scipy",
    "sklearn",
    "joblib",
}


def reseed() -> None:
    """Seeds the global random number generators again. Otherwise all forked workers would draw the
    same numbers.
    """
    random.seed()
    for name, function in (("numpy.random", "seed"), ("torch", "seed")):
        if (module := sys.modules.get(name)) is not None:
            with suppress(Exception):  # a stand-in for the module, or a partial import
                getattr(module, function)()


def refuse_patched() -> None:
    """Raises TargetError if the module has replaced functions that a worker needs, as gevent does."""
    for library, module, attribute in (
        ("gevent", "gevent.monkey", "saved"),
        ("eventlet", "eventlet.patcher", "already_patched"),
    ):
        if getattr(sys.modules.get(module), attribute, None):
            raise errors.TargetError(
                f"the module applies the monkey patching of {library}, which replaces the "
                "sockets, threads and forks that a worker is made of: apply it where the "
                "module is a program (under `if __name__ == '__main__':`), not where it "
                "is imported. `async def` steps wait for many things at once without it"
            )


class Watch:
    """Compares the process with its state before the import. Create a Watch before the import."""

    def __init__(self) -> None:
        self._threads = ThreadWatch()
        self._descriptors = _descriptors()

    def threads(self) -> tuple[int, tuple[str, ...]]:
        return self._threads.found()

    def shared(self) -> tuple[str, ...]:
        """Returns a sentence for each descriptor and each generator that all workers would share."""
        opened = [
            text
            for fd, descriptor in sorted(_descriptors().items())
            if self._descriptors.get(fd) != descriptor and (text := _told_descriptor(fd, descriptor))
        ]
        return (*_bounded(opened), *_bounded([_told_generator(g) for g in _generators()]))


def _bounded(sentences: list[str]) -> list[str]:
    more = len(sentences) - WARNINGS_MAX
    return [*sentences[:WARNINGS_MAX], *([f"and {more:,} more of the kind"] if more > 0 else [])]


# Threads


class ThreadWatch:
    """Records which import was in progress when a thread appeared."""

    def __init__(self) -> None:
        self._known = _threads()
        self._known_python = len(sys._current_frames())
        self._importing = "the module itself"
        self._made: Counter[str] = Counter()
        self._on = True
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "import" and self._on:
            self._look()
            self._importing = str(args[0])

    def _look(self) -> None:
        now = _threads()
        if now > self._known:
            self._made[self._importing] += now - self._known
        self._known = now

    def found(self) -> tuple[int, tuple[str, ...]]:
        """Returns the number of threads that a fork would lose, and the imports that started them.
        Some libraries restart their threads after a fork; those threads are not counted.
        """
        self._look()
        self._on = False
        named = [f"thread {t.name!r}" for t in threading.enumerate() if t is not threading.main_thread()]
        python = len(sys._current_frames()) - self._known_python
        harmful = {m: n for m, n in self._made.items() if m.partition(".")[0] not in FORK_SAFE}
        count = max(python, min(sum(harmful.values()), self._known - 1))
        # A Python thread has a name, which says more than the import before it.
        return (count, tuple(named if python >= count else [*harmful, *named])) if count > 0 else (0, ())


def _threads() -> int:
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return threading.active_count()


# Descriptors


class Descriptor(Struct, frozen=True):
    mode: int
    device: int
    inode: int


def _descriptors() -> dict[int, Descriptor]:
    found = {}
    for folder in ("/proc/self/fd", "/dev/fd"):
        with suppress(OSError):
            for name in os.listdir(folder):
                with suppress(OSError, ValueError):  # the listed folder itself, which is closed by now
                    s = os.fstat(int(name))
                    found[int(name)] = Descriptor(s.st_mode, s.st_dev, s.st_ino)
            return found
    return found


def _told_descriptor(fd: int, descriptor: Descriptor) -> str | None:
    """Describes a descriptor. Returns None for a harmless one: a device, or a file opened with
    O_APPEND.
    """
    mode = descriptor.mode
    if stat.S_ISSOCK(mode):
        what, harm = _socket(fd), "they would read each other's answers"
    elif stat.S_ISREG(mode) and not _appends(fd):
        what, harm = f"the file {_link(fd)}", "they would share its position and its locks"
    elif stat.S_ISFIFO(mode):
        what, harm = "a pipe", "they would read what is meant for another"
    elif "eventpoll" in _link(fd):
        what, harm = "an event loop's descriptor", "they would wake each other"
    else:
        return None
    name = _owner(fd)
    return (
        f"{f'{name}: ' if name else ''}{what} was opened while the module was imported, and all workers "
        f"share it: {harm}. Open it in the step, or in a function with @functools.cache that the step calls"
    )


def _appends(fd: int) -> bool:
    import fcntl

    with suppress(OSError):
        return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND)
    return False


def _socket(fd: int) -> str:
    with suppress(OSError), socket.socket(fileno=os.dup(fd)) as sock:
        with suppress(OSError):
            return f"a connection to {_address(sock.getpeername())}"
        with suppress(OSError):
            return f"a socket on {_address(sock.getsockname())}"
    return "a socket"


def _address(address: Any) -> str:
    if isinstance(address, tuple):
        return f"{address[0]}:{address[1]}"
    return (os.fsdecode(address) if isinstance(address, bytes) else str(address)) or "an unnamed socket"


def _link(fd: int) -> str:
    with suppress(OSError):
        return os.readlink(f"/proc/self/fd/{fd}")
    return "?"


def _owner(fd: int) -> str | None:
    """Returns the name of a global that holds the descriptor directly."""
    for name, value in _globals():
        with suppress(Exception):  # a user's object of any kind, including a lazy proxy
            if not isinstance(value, type | ModuleType | FunctionType) and value.fileno() == fd:
                return name
    return None


# Generators of random numbers


def _generators() -> Iterator[tuple[str, str]]:
    """Yields (name, type) of each random number generator in a global. The generator may also be in
    a container in a global, in an object of one of the user's classes, or in such a class.
    """
    seen: set[int] = set()
    for name, value in _globals():
        for place, part in ((name, value), *_members(name, value)):
            kind = None
            with suppress(Exception):  # a global may hold any object
                kind = _is_generator(part)
            if kind and id(part) not in seen:
                seen.add(id(part))
                yield place, kind


def _members(name: str, value: Any) -> list[tuple[str, Any]]:
    with suppress(Exception):
        if isinstance(value, dict):
            return [(f"{name}[{k!r:.40}]", v) for k, v in list(value.items())[:SEARCHED_MAX]]
        if isinstance(value, list | tuple | set | frozenset):
            return [(f"{name}[{n}]", v) for n, v in enumerate(list(value)[:SEARCHED_MAX])]
        if not isinstance(value, ModuleType | FunctionType):
            return [(f"{name}.{k}", v) for k, v in list(vars(value).items())[:SEARCHED_MAX]]
    return []


def _is_generator(value: Any) -> str | None:
    # Not isinstance: a lazy proxy may raise an exception.
    kind = type(value)
    module = str(kind.__module__)  # a class may have a property of that name
    if issubclass(kind, random.Random) and not issubclass(kind, random.SystemRandom):
        return None if value is getattr(random, "_inst", None) else f"{module}.{kind.__qualname__}"
    if module.startswith("numpy.random") and kind.__qualname__ in ("Generator", "RandomState"):
        # `reseed` seeds it again.
        numpys_own = getattr(sys.modules.get("numpy.random.mtrand"), "_rand", None)
        return None if value is numpys_own else f"numpy.random.{kind.__qualname__}"
    if module.startswith("torch") and kind.__qualname__ == "Generator":
        return "torch.Generator"
    return None


def _told_generator(found: tuple[str, str]) -> str:
    name, kind = found
    return (
        f"{name} ({kind}) was made while the module was imported, and every worker draws the same numbers "
        "from it: make it in the step, or in a function with @functools.cache that the step calls"
    )


def _globals() -> Iterator[tuple[str, Any]]:
    """Yields the globals of all modules except Python's own. The globals of the user's program come
    first.
    """
    main = sys.modules.get("__main__")
    modules = [("__main__", main), *((n, m) for n, m in list(sys.modules.items()) if m is not main)]
    for name, module in modules:
        if name.partition(".")[0] in NOT_THEIRS or not isinstance(module, ModuleType):
            continue
        with suppress(Exception):
            for attribute, value in list(vars(module).items()):
                if not attribute.startswith("__"):
                    yield f"{name}.{attribute}", value
