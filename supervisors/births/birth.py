"""How a new process becomes a worker: its signals, its output, what it does when the supervisor dies."""

import atexit
import faulthandler
import logging
import os
import signal
import socket
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pgqrs.flows import flow
from pgqrs.program import interpreter
from supervisors.births.inherited import reseed
from supervisors.births.launch import PR_SET_PDEATHSIG, STACKS_SIGNAL, prctl
from supervisors.worker.output import catch_output as catch_output
from supervisors.worker.output import finish_output, tag_output
from supervisors.worker.worker import make_worker

DEADLINE_S, LOOK_S = 5.0, 0.0005  # for a process to get its new parent, or to be dead after it was killed
LEAVE_S = 5  # for what a worker's code registered with atexit
WORKER_OOM_SCORE = 500  # the kernel shall take a worker before the supervisor


def become_worker(
    sock: socket.socket,
    output_fd: int,
    kind: Literal["sync", "async"],
    definitions: dict[str, flow.Definition],
    supervisor: int,
    payload_bytes_max: int,
    board_fd: int | None = None,
) -> None:
    os.setpgid(0, 0)
    die_with(supervisor)
    null = os.open(os.devnull, os.O_RDONLY)
    for fd, number in ((null, 0), (output_fd, 1), (output_fd, 2)):
        os.dup2(fd, number)
    os.close(null)
    os.close(output_fd)
    tag_output()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    faulthandler.enable(file=2)
    faulthandler.register(STACKS_SIGNAL, file=2)  # in C, so it works in the middle of a C call too
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(WORKER_OOM_SCORE))
    reseed()
    atexit._clear()  # what the import registered is the importing process's to call
    flow.mark_worker()
    code = 0
    try:
        with interpreter.ours():
            worker = make_worker(kind, sock, definitions, payload_bytes_max, board_fd)
        worker.run(os.getpid())
        _leave()
    except (BrokenPipeError, ConnectionResetError):
        pass  # the supervisor is gone
    except BaseException:
        traceback.print_exc()
        code = 70
    finally:
        finish_output()
        os._exit(code)


def _leave() -> None:
    """What a program does at its end, for what was registered in this worker. SIGALRM ends what takes too long."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(LEAVE_S)
    atexit._run_exitfuncs()
    logging.shutdown()  # handlers that keep lines back


def die_with(supervisor: int) -> None:
    """SIGKILL when the supervisor ends, however it ends and whatever this process is doing then. Set once we are its
    child: the signal is tied to the parent of that moment. The check afterwards closes the gap before."""
    if sys.platform != "linux":
        return
    for _ in range(int(DEADLINE_S / LOOK_S)):
        if os.getppid() == supervisor:
            break
        time.sleep(LOOK_S)
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != supervisor:
        os._exit(71)


def configure_logging() -> None:
    """A module that set up logging by itself keeps it; for all others, INFO and above are lines of output.

    By the handler of last resort, which is asked where a logger and its parents have none: a handler of the root would print a
    second time what a logger with one of its own has printed.
    """
    if not logging.getLogger().handlers and logging.lastResort is not None:
        logging.getLogger().setLevel(logging.INFO)
        logging.lastResort.setLevel(logging.INFO)
        logging.lastResort.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
