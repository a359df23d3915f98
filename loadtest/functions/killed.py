"""A step that notes each of its starts, and that ends only on its second start."""

import os
import time

import pgqrs


@pgqrs.step
def stay(path: str) -> int:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    first = os.fstat(fd).st_size == 0
    os.write(fd, f"{os.getpid()} {time.time()!r}\n".encode())
    os.close(fd)
    if first:
        time.sleep(60)
    return 1


@pgqrs.workflow
def to_be_killed(path: str) -> int:
    return stay(path)
