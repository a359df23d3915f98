"""The supervisor of a `store.workers()` block, for a script, a notebook or a test."""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from pgqrs import errors
from pgqrs.config import TURSO_SHARED, Config, DurabilityMode, turso_file
from pgqrs.program import interpreter, targets

# The bytes by which the parent tells a supervisor how to stop.
DRAIN, STOP_AT_NEXT_STEP, STOP_NOW = b"1", b"2", b"3"
# How long running steps may take to end if an exception left the block.
BOUNDARY_S = 5.0
MAIN = "supervisors.__main__:main"


class Local:
    """The supervisor of one block, as the program sees it."""

    def __init__(self, process: "subprocess.Popen[bytes]", parent_write: int) -> None:
        self._process = process
        self._parent_write = parent_write
        self._pid = os.getpid()
        _open.add(self)

    @property
    def forked(self) -> bool:
        """Whether this process is a fork of the program that started the supervisor. A fork does
        not control the supervisor.
        """
        return os.getpid() != self._pid

    def death(self) -> str | None:
        """Returns how the supervisor ended, or None while it runs."""
        code = None if self.forked else self._process.poll()
        if code is None:
            return None
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    @property
    def was_killed(self) -> bool:
        return (self._process.returncode or 0) < 0

    def stop(self, level: bytes) -> None:
        """Stops the supervisor and waits until it has ended. A KeyboardInterrupt during the wait
        stops it immediately and is raised again.
        """
        try:
            with contextlib.suppress(BrokenPipeError):
                self._tell_and_wait(level)
            self._process.wait()
        finally:
            # If this process dies first, the closed pipe tells the supervisor that its parent has gone.
            self.close()

    def _tell_and_wait(self, level: bytes) -> None:
        os.write(self._parent_write, level)
        try:
            self._process.wait(None if level == DRAIN else BOUNDARY_S)
        except subprocess.TimeoutExpired:
            os.write(self._parent_write, STOP_NOW)
        except KeyboardInterrupt:
            os.write(self._parent_write, STOP_NOW)
            self._process.wait()
            raise

    def terminate(self) -> None:
        self._process.terminate()

    def close(self) -> None:
        if self in _open:
            _open.discard(self)
            os.close(self._parent_write)


_open: set[Local] = set()


def _in_forked_child() -> None:
    """Closes the pipe in a fork of the program. An open copy would hide the end of the program from
    the supervisor.
    """
    for local in list(_open):
        local.close()


os.register_at_fork(after_in_child=_in_forked_child)


@contextlib.contextmanager
def local_supervisor(
    config: Config,
    prepare: Callable[[], object],
    functions: Sequence[Callable[..., Any]],
    processes: int | None,
    lanes: int | None,
    running: list[Local],
) -> Iterator[None]:
    """Runs a supervisor in a process of its own while the block lasts. The supervisor is ready when
    the block begins, and drains when the block ends.

    `prepare` is called before the supervisor starts. `running` contains the supervisor while the
    block lasts.

    If an exception leaves the block (Ctrl-C is one), the supervisor stops each run at its next
    step, and ends after BOUNDARY_S at the latest. A second Ctrl-C stops the supervisor immediately.
    Nothing is lost: unfinished runs are released. If the supervisor has died, raises
    SupervisorError at the end of the block.
    """
    targets.refuse_while_loading()
    interpreter.refuse_another_start()
    with targets.of_functions(functions) as target, contextlib.ExitStack() as stack:
        _refuse_unshared(config)
        prepare()
        _know_main_as_workers_do()
        local = _started(target, stack.enter_context(_config_of_its_own(config)), processes, lanes)
        running.append(local)
        # This level applies unless the block ends normally.
        level = STOP_AT_NEXT_STEP
        try:
            yield
            level = DRAIN
        finally:
            running.remove(local)
            if not local.forked:
                died = local.death()
                local.stop(level)
                # A supervisor that was killed a moment ago may not have been reaped at the first
                # check. It has not drained either.
                died = died or (local.death() if local.was_killed else None)
                if died and level == DRAIN:
                    raise errors.SupervisorError(told_death(died))


def told_death(how: str) -> str:
    return (
        f"the supervisor of store.workers() ended before its block did ({how}); nothing is lost: what it "
        "ran is given back, and waits for the next supervisor"
    )


def _refuse_unshared(config: Config) -> None:
    """Raises ValidationError if another process cannot open the database."""
    if config.dsn.endswith(":memory:"):
        raise errors.ValidationError(
            "store.workers() needs a database that another process can open, not sqlite::memory:"
        )
    if config.backend == "turso" and not turso_file(config.dsn)[1]:
        raise errors.ValidationError(
            "store.workers() runs its supervisor in a process of its own, and a Turso file belongs to one "
            f"process, here the one that has this store: use `pgqrs supervise`, a DSN with ?{TURSO_SHARED} "
            "(an experiment of the driver's), or sqlite://"
        )
    if config.backend == "s3" and config.s3_mode is DurabilityMode.Local:
        raise errors.ValidationError(
            "in s3_mode Local, this program's writes stay in its own copy, which the supervisor of "
            "store.workers() would not see; use DurabilityMode.Durable"
        )


def _know_main_as_workers_do() -> None:
    """Registers `__main__` under the alias that workers use for it, because their pickles name
    classes by this alias.
    """
    sys.modules.setdefault(targets.MAIN_ALIAS, sys.modules[targets.MAIN])


def _started(target: targets.Target, config: Config, processes: int | None, lanes: int | None) -> Local:
    """Starts a supervisor and waits until it is ready. Raises SupervisorError with the reason if it
    does not start.
    """
    parent_read, parent_write = interpreter.pipe()
    ready_read, ready_write = interpreter.pipe()
    order = {
        "target": msgspec.to_builtins(target),
        "config": config.to_dict(),
        "options": {
            "workers": processes,
            "lanes": lanes,
            "ready_fd": ready_write,
            "parent_fd": parent_read,
            "parent_pid": os.getpid(),
        },
    }
    try:
        process = interpreter.start(
            MAIN,
            json.dumps(order).encode(),
            argv=sys.argv,
            pass_fds=(parent_read, ready_write),
            start_new_session=True,
        )
    except BaseException:
        os.close(parent_write)
        os.close(ready_read)
        raise
    finally:
        os.close(parent_read)
        os.close(ready_write)
    local = Local(process, parent_write)
    told = b""
    try:
        told = os.read(ready_read, 65536)
        if told != b"1":
            reason = told.decode(errors="replace") or f"it ended with exit code {process.wait()}"
            raise errors.SupervisorError(f"the supervisor could not start: {reason}")
    except BaseException:
        # The supervisor may still be importing, and does not read the pipe then.
        local.terminate()
        local.stop(STOP_AT_NEXT_STEP)
        raise
    finally:
        os.close(ready_read)
    return local


# The subfolders of `s3_cache_dir` that supervisors of this process use. A number is reused when its
# folder is free, together with the files in that folder.
_cache_folders: set[str] = set()


@contextlib.contextmanager
def _config_of_its_own(config: Config) -> Iterator[Config]:
    """Yields a config with a separate S3 cache folder, inside the user's. A cache folder belongs to
    one process.
    """
    if config.backend != "s3" or config.s3_cache_dir is None:
        yield config
        return
    from pgqrs.store.s3 import cache

    numbered = (os.path.join(config.s3_cache_dir, f"workers-{n}") for n in itertools.count(1))
    folder = next(f for f in numbered if f not in _cache_folders and not cache.is_in_use(Path(f)))
    _cache_folders.add(folder)
    own = Config.from_dict(config.to_dict())
    own.s3_cache_dir = folder
    try:
        yield own
    finally:
        _cache_folders.discard(folder)
