"""A handler that notes when it started."""

import os
import time

import pgqrs


@pgqrs.handler(queue="idle")
def idle(payload: dict[str, str]) -> None:
    now = time.time()
    fd = os.open(payload["path"], os.O_WRONLY | os.O_APPEND)
    os.write(fd, f"{now!r}\n".encode())
    os.close(fd)
