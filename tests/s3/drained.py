"""What the supervisors of these tests drain: a handler that notes each message in the file that EVIDENCE names."""

import os
import time

import pgqrs

TAKES_S = float(os.environ.get("TAKES_S", "0"))


@pgqrs.handler(queue="jobs")
def work(n: int) -> None:
    fd = os.open(os.environ["EVIDENCE"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(fd, f"{n}\n".encode())
    os.close(fd)
    time.sleep(TAKES_S)
