"""python3 dev.py run stale-writer: what a program writes that was stopped for too long.

One program takes a run for a second, and is stopped (SIGSTOP) in its step. When its second is over, another takes the run and begins
the same step. Then the first goes on (SIGCONT), and writes its results late. Of those, nothing may be found: it is the other's run.

The same program for pgqrs 0.15.3 from PyPI and for this one, on PostgreSQL.
"""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pgqrs  # either of the two, where this file is the program

HOLD_S = 1
LATE = "a late write"  # how those begin of which nothing may be found


async def first(store: pgqrs.Store) -> None:
    """Takes the run, begins its step, and is stopped there."""
    consumer = await store.consumer("flow")
    [message] = await consumer.dequeue_many_with_delay(1, HOLD_S)
    run = await pgqrs.run().message(message).store(store).execute()
    await run.start()
    step = await run.acquire_step("pay")
    say(
        f"takes the run for {HOLD_S} s, begins its step, and is stopped (SIGSTOP), as worker {consumer.worker_id}"
    )
    os.kill(os.getpid(), signal.SIGSTOP)
    say("goes on (SIGCONT)")
    await write(f"{LATE}, the step's result", step.guard.success, "paid by the first")
    await write(f"{LATE}, the run's result", run.success, "done by the first")
    await write(f"{LATE}, the message's end", consumer.archive, message.id)


async def second(store: pgqrs.Store) -> None:
    """Takes the run when its hold is over, and is in its step when the first goes on."""
    consumer = await store.consumer("flow")
    await asyncio.sleep(HOLD_S + 0.2)
    taken = await consumer.dequeue_many_with_delay(1, 60)
    if not taken:
        holder = int(sys.argv[2])
        await pgqrs.admin(store).release_worker_messages(holder)
        say(f"is offered nothing though that time is over; an operator releases what worker {holder} holds")
        taken = await consumer.dequeue_many_with_delay(1, 60)
    run = await pgqrs.run().message(taken[0]).store(store).execute()
    await run.start()
    step = await run.acquire_step("pay")
    say("has taken the run, and begins its step")
    await asyncio.to_thread(sys.stdin.readline)
    say(f"finds of its own run: {await recorded(store)}")
    await write("the step's result", step.guard.success, "paid by the second")
    await write("the run's result", run.success, "done by the second")
    await write("the message's end", consumer.archive, taken[0].id)
    say(f"finds at the end:     {await recorded(store)}")


async def recorded(store: pgqrs.Store) -> str:
    [run] = await (await store.get_workflow_runs()).list()
    [step] = await (await store.get_workflow_steps()).list()
    return f"step {step.output or 'without a result'!r}, run {run.output or 'without a result'!r}"


async def write(what: str, call, *arguments) -> None:  # type: ignore[no-untyped-def]
    try:
        answer = await call(*arguments)
    except Exception as e:
        say(f"{what}: REFUSED, {type(e).__name__}")
    else:
        say(f"{what}: {'REFUSED' if answer is False else 'written'}")


def say(text: str) -> None:
    print(f"  {sys.argv[1]:<8}{text}", flush=True)


async def prepare(store: pgqrs.Store) -> None:
    await pgqrs.admin(store).install()
    await pgqrs.workflow().name("flow").store(store).create()
    await pgqrs.workflow().name("flow").store(store).trigger({}).execute()


async def play(role: str) -> None:
    store = await pgqrs.connect(os.environ["PGQRS_DSN"])
    await {"prepare": prepare, "first": first, "second": second}[role](store)
    sys.stdout.flush()
    os._exit(0)


def main() -> int:
    from tests.interop.conftest import VERSION, environment
    from tests.postgres_server import PostgresServer

    assert __doc__ is not None
    print(__doc__.split("\n\n")[1], flush=True)
    with PostgresServer.start() as server, tempfile.TemporaryDirectory() as elsewhere:
        theirs = experiment(f"pgqrs {VERSION}", environment(), server.create_database("theirs"), elsewhere)
        ours = experiment("this pgqrs", Path(sys.executable), server.create_database("ours"), elsewhere)
    print(
        f"\nLate writes that went through: {late(theirs)} of 3 with pgqrs {VERSION}, {late(ours)} of 3 with this one."
    )
    return 0 if late(ours) == 0 and ours.count(": written") == 3 else 1


def late(said: str) -> int:
    return sum(LATE in line and line.endswith("written") for line in said.splitlines())


def experiment(name: str, python: Path, dsn: str, elsewhere: str) -> str:
    """What was said. Either program ends; the first is stopped for as long as the second needs to have the run."""
    print(f"\n{name}:", flush=True)
    settings = {**os.environ, "PGQRS_DSN": dsn}
    settings.pop("PYTHONPATH", None)

    def start(*role: str) -> subprocess.Popen[str]:
        # From elsewhere, so that `import pgqrs` finds what is installed there.
        return subprocess.Popen(
            [str(python), __file__, *role],
            env=settings,
            cwd=elsewhere,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    prepared = start("prepare")
    prepared.communicate(timeout=30)
    one = start("first")
    said = [_line(one)]
    os.waitpid(one.pid, os.WUNTRACED)  # until it is stopped
    other = start("second", said[0].split()[-1])
    said.append(_line(other))
    if "operator" in said[-1]:
        said.append(_line(other))
    one.send_signal(signal.SIGCONT)
    said += one.communicate(timeout=30)[0].rstrip().splitlines()
    said += other.communicate("go on\n", timeout=30)[0].rstrip().splitlines()
    print(*said, sep="\n", flush=True)
    return "\n".join(said)


def _line(program: subprocess.Popen[str]) -> str:
    assert program.stdout is not None
    return program.stdout.readline().rstrip()


if __name__ == "__main__":
    if sys.argv[1:]:
        asyncio.run(play(sys.argv[1]))
    sys.exit(main())
