"""Runs that wait for others, that do not leave, and that fork. Each connects to the database of CRASHES_DSN."""

import asyncio
import contextlib
import os
import threading
import time

import pgqrs


class _Connected:
    store: pgqrs.Store | None = None


def store() -> pgqrs.Store:
    if _Connected.store is None:
        _Connected.store = pgqrs.connect(os.environ["CRASHES_DSN"]).open()
    return _Connected.store


@pgqrs.step
def work(n: int) -> int:
    return n


@pgqrs.step
def nap(seconds: float) -> None:
    time.sleep(seconds)


@pgqrs.workflow
def child(n: int) -> int:
    return work(n)


@pgqrs.step
def ask(n: int) -> int:
    return store().trigger(child, n).result()


@pgqrs.workflow
def asks_in_a_step(n: int) -> int:
    return ask(n)


@pgqrs.workflow
def asks_in_its_own_code(n: int) -> int:
    work(n)
    return store().trigger(child, n).result()


@pgqrs.step
def deeper(n: int) -> int:
    return 1 if n == 0 else 1 + store().trigger(deep, n - 1).result()


@pgqrs.workflow
def deep(n: int) -> int:
    return deeper(n)


@pgqrs.step
def ask_for(run: int) -> str:
    try:
        store().run(run).result()
    except pgqrs.errors.InternalError as e:
        return str(e)
    return "it ended"


@pgqrs.workflow
def asks_for_itself() -> str:
    return ask_for(pgqrs.current_run().id)


@pgqrs.workflow
def asks_for(run: int) -> str:
    return ask_for(run)


@pgqrs.workflow
def naps(seconds: float) -> float:
    nap(0.001)
    nap(seconds)
    return time.time()


@pgqrs.step(retry=2)
def flaky() -> int:
    raise ConnectionError("down")


@pgqrs.workflow
def stubborn() -> int:
    while True:
        try:
            return flaky()
        except:  # noqa: E722
            time.sleep(0.05)


@pgqrs.step(retry=2)
async def async_flaky() -> int:
    raise ConnectionError("down")


@pgqrs.workflow
async def async_stubborn() -> int:
    while True:
        try:
            return await async_flaky()
        except:  # noqa: E722
            with contextlib.suppress(BaseException):  # it is cancelled here, once
                await asyncio.sleep(0.05)


@pgqrs.workflow
async def async_innocent() -> int:
    await asyncio.sleep(0.001)
    return 1


def in_the_background() -> None:
    pid = os.fork()
    if pid == 0:
        raise OSError("no such printer")
    os.waitpid(pid, 0)


@pgqrs.workflow
def forks() -> int:
    nap(0.05)
    try:
        in_the_background()
    except OSError:
        pass
    return work(2)


@pgqrs.step
async def async_work(n: int) -> int:
    await asyncio.sleep(0.01)
    return n


@pgqrs.workflow
async def async_forks() -> int:
    await async_work(1)
    try:
        in_the_background()
    except OSError:
        pass
    return await async_work(2)


LOCK = threading.Lock()


@pgqrs.step
def quick(n: int) -> int:
    return n


@pgqrs.workflow
def locked(n: int) -> int:
    with LOCK:
        return quick(n) + quick(n + 1)
