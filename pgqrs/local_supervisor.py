"""A supervisor for the length of a block: for a script, a notebook or a test."""

import contextlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from pgqrs import errors, targets
from pgqrs.config import TURSO_SHARED, Config, DurabilityMode, turso_file

# How a supervisor is to stop, as its parent tells it.
DRAIN, STOP_AT_NEXT_STEP, STOP_NOW = b"1", b"2", b"3"
BOUNDARY_S = 5.0  # for its steps to end, where the block was left by an exception


@contextlib.contextmanager
def local_supervisor(
    config: Config,
    prepare: Callable[[], object],
    functions: Sequence[Callable[..., Any]],
    processes: int | None,
    lanes: int | None,
) -> Iterator[None]:
    """Ready on entry, drained on leaving, a process of its own. `prepare` is called before it starts.

    Left by an exception (Ctrl-C is one), it stops at the next step of every run, or after BOUNDARY_S; a second Ctrl-C stops it
    now. Nothing is lost either way: what was begun is given back.
    """
    targets.refuse_while_loading()
    if config.dsn.endswith(":memory:"):
        raise errors.ValidationError(
            "store.workers() needs a database that another process can open, not sqlite::memory:"
        )
    target = targets.of_functions(functions)
    if config.backend == "turso" and not turso_file(config.dsn)[1]:
        raise errors.ValidationError(
            "store.workers() runs its supervisor in a process of its own, and a Turso file belongs to one process, here the one "
            f"that has this store: use `pgqrs supervise`, a DSN with ?{TURSO_SHARED} (an experiment of the driver's), or sqlite://"
        )
    if config.backend == "s3" and config.s3_mode is DurabilityMode.Local:
        raise errors.ValidationError(
            "in s3_mode Local, this program's writes stay in its own copy, which the supervisor of store.workers() would not see; use "
            "DurabilityMode.Durable"
        )
    prepare()
    with _config_of_its_own(config) as own, _supervised(own, target, processes, lanes):
        yield


@contextlib.contextmanager
def _supervised(
    config: Config, target: targets.Target, processes: int | None, lanes: int | None
) -> Iterator[None]:
    parent_read, parent_write = os.pipe()
    ready_read, ready_write = os.pipe()
    order = {
        "target": msgspec.to_builtins(target),
        "config": config.to_dict(),
        "options": {"workers": processes, "lanes": lanes, "ready_fd": ready_write, "parent_fd": parent_read},
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "supervisors"],
        stdin=subprocess.PIPE,
        pass_fds=(parent_read, ready_write),
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    os.close(parent_read)
    os.close(ready_write)
    ready = False
    level = STOP_AT_NEXT_STEP  # unless the block is left as it should be
    try:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(order).encode())
            process.stdin.close()
        told = os.read(ready_read, 65536)
        ready = told == b"1"
        if not ready:
            reason = told.decode(errors="replace") or f"it ended with exit code {process.wait()}"
            raise errors.SupervisorError(f"the supervisor could not start: {reason}")
        yield
        level = DRAIN
    finally:
        os.close(ready_read)
        if not ready:
            process.terminate()  # it may still be importing, and look at nothing
        try:
            _stop(process, parent_write, level)
        finally:
            os.close(parent_write)  # where we die before, the supervisor finds that it has no parent any more


# The cache folders, within the user's, of the supervisors that this process has started. A number is used again, and with it what is
# in the folder.
_cache_folders: set[str] = set()


@contextlib.contextmanager
def _config_of_its_own(config: Config) -> Iterator[Config]:
    """A cache folder belongs to one process: the supervisor gets one within the user's."""
    if config.backend != "s3" or config.s3_cache_dir is None:
        yield config
        return
    from pgqrs.store import cache

    numbered = (os.path.join(config.s3_cache_dir, f"workers-{n}") for n in itertools.count(1))
    folder = next(f for f in numbered if f not in _cache_folders and not cache.is_in_use(Path(f)))
    _cache_folders.add(folder)
    own = Config.from_dict(config.to_dict())
    own.s3_cache_dir = folder
    try:
        yield own
    finally:
        _cache_folders.discard(folder)


def _stop(process: "subprocess.Popen[bytes]", parent_write: int, level: bytes) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(parent_write, level)
        try:
            process.wait(None if level == DRAIN else BOUNDARY_S)
        except subprocess.TimeoutExpired:
            os.write(parent_write, STOP_NOW)
        except KeyboardInterrupt:
            os.write(parent_write, STOP_NOW)
            process.wait()
            raise
    process.wait()
