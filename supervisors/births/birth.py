"""Turns a forked or spawned process into a worker: sets its signals and its output, and makes it
end when the supervisor dies.
"""

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

# The time for a process to get its new parent, or to be dead after it was killed.
DEADLINE_S, LOOK_S = 5.0, 0.0005
# The time for functions that a worker's code registered with atexit.
LEAVE_S = 5
# Makes the kernel kill a worker before the supervisor.
WORKER_OOM_SCORE = 500


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
    # Implemented in C, so it works during a C call too.
    faulthandler.register(STACKS_SIGNAL, file=2)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(WORKER_OOM_SCORE))
    reseed()
    # Functions registered during the import are called in the importing process.
    atexit._clear()
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
    """Calls the functions that were registered with atexit in this worker. If they take too long,
    SIGALRM ends the process.
    """
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(LEAVE_S)
    atexit._run_exitfuncs()
    logging.shutdown()  # writes lines that handlers have buffered


def die_with(supervisor: int) -> None:
    """Makes the kernel kill this process when the supervisor ends, for whatever reason.

    The kernel ties the death signal to the process that is the parent at the time of this call. So
    the call first waits until the supervisor is the parent. If the supervisor died before the
    signal was set, the check afterwards finds that.
    """
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
    """Shows log messages of INFO and above, unless the user's module has configured logging itself.

    This uses logging.lastResort, which handles messages of loggers without any handler. A handler
    of the root logger would repeat the messages of a logger with its own handler.
    """
    if not logging.getLogger().handlers and logging.lastResort is not None:
        logging.getLogger().setLevel(logging.INFO)
        logging.lastResort.setLevel(logging.INFO)
        logging.lastResort.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
