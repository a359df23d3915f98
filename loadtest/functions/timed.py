"""A handler that notes how old its message was when it started, in seconds."""

import os
import time
from typing import Any

import pgqrs


@pgqrs.handler(queue="timed")
def timed(payload: dict[str, Any]) -> None:
    age = time.time() - payload["due"]
    fd = os.open(payload["path"], os.O_WRONLY | os.O_APPEND)
    os.write(fd, f"{age!r}\n".encode())
    os.close(fd)
