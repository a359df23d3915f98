"""What functions print and log, in every way that there is."""

import ctypes
import faulthandler
import logging
import os
import subprocess
import sys
import threading
import time

import pgqrs

own = logging.getLogger("own")
own.addHandler(logging.StreamHandler(sys.stdout))

libc = ctypes.CDLL(None)


@pgqrs.step
def say() -> None:
    run = pgqrs.current_run().id
    print(f"print of {run}")
    sys.__stdout__.write(f"original of {run}\n")  # type: ignore[union-attr]
    sys.stdout.buffer.write(f"buffer of {run}\n".encode())
    os.write(1, f"descriptor of {run}\n".encode())
    subprocess.run(["echo", f"child of {run}"], check=True)
    libc.puts(f"C of {run}".encode())
    libc.fflush(None)
    thread = threading.Thread(target=print, args=(f"thread of {run}",))
    thread.start()
    thread.join()
    own.warning("logger of %s", run)
    logging.getLogger("other").info("other logger of %s", run)
    print(f"end of {run}", end="")


@pgqrs.workflow
def saying() -> None:
    say()


@pgqrs.step
def dump() -> None:
    faulthandler.dump_traceback(file=2)


@pgqrs.workflow
def dumping() -> None:
    dump()


@pgqrs.step
def much(lines: int) -> None:
    for n in range(lines):
        print(f"line {n}", "x" * 100)


@pgqrs.workflow
def talkative(lines: int) -> int:
    much(lines)
    return lines


@pgqrs.step(name="[/files] [red]x[/]")
def marked(evidence: str, seconds: float) -> str:
    with open(evidence, "a") as file:
        for _ in range(int(seconds * 100)):
            file.write(".")
            file.flush()
            time.sleep(0.01)
    return evidence


@pgqrs.workflow
def ticking(evidence: str, seconds: float) -> str:
    return marked(evidence, seconds)


@pgqrs.workflow
def failing() -> None:
    raise ValueError("as it must")
