"""python3 dev.py run stale-writer: one program stops in a step, beyond its hold on the run; another takes the run; the first goes on.

The same program for pgqrs 0.15.3 from PyPI and for this one, on PostgreSQL. What the second one must find: nothing of what the first
one wrote after it had lost the run.
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


async def early(store: pgqrs.Store) -> None:
    """Takes the run, begins its step, and is stopped there."""
    consumer = await store.consumer("flow")
    [message] = await consumer.dequeue_many_with_delay(1, HOLD_S)
    run = await pgqrs.run().message(message).store(store).execute()
    await run.start()
    step = await run.acquire_step("pay")
    say(f"is in its step, as worker {consumer.worker_id}")
    os.kill(os.getpid(), signal.SIGSTOP)
    say("goes on, late")
    await write("the step's result", step.guard.success, "paid by the late one")
    await write("the run's result", run.success, "the late one")
    await write("the end of the message", consumer.archive, message.id)


async def next_one(store: pgqrs.Store) -> None:
    """Takes the run when its hold is over, and is in its step when the early one goes on."""
    consumer = await store.consumer("flow")
    await asyncio.sleep(HOLD_S + 0.2)
    taken = await consumer.dequeue_many_with_delay(1, 60)
    if not taken:
        holder = int(sys.argv[2])
        await pgqrs.admin(store).release_worker_messages(holder)
        say(f"is offered nothing, until an operator releases what worker {holder} holds")
        taken = await consumer.dequeue_many_with_delay(1, 60)
    run = await pgqrs.run().message(taken[0]).store(store).execute()
    await run.start()
    step = await run.acquire_step("pay")
    say(f"has the run, and pays by itself (step: {step.status})")
    await asyncio.to_thread(sys.stdin.readline)
    await write("the step's result", step.guard.success, "paid by the next one")
    await write("the run's result", run.success, "the next one")
    await write("the end of the message", consumer.archive, taken[0].id)
    [[paid, ended]] = [
        (step.output, record.output)
        for record in await (await store.get_workflow_runs()).list()
        for step in await (await store.get_workflow_steps()).list()
    ]
    say(f"recorded: {paid!r}, and the run ended by {ended!r}")


async def write(what: str, call, *arguments) -> None:  # type: ignore[no-untyped-def]
    try:
        answer = await call(*arguments)
    except Exception as e:
        say(f"{what}: REFUSED, {type(e).__name__}")
    else:
        say(f"{what}: {'REFUSED' if answer is False else 'written'}")


def say(text: str) -> None:
    print(f"  {sys.argv[1]:<9}{text}", flush=True)


async def prepare(store: pgqrs.Store) -> None:
    await pgqrs.admin(store).install()
    await pgqrs.workflow().name("flow").store(store).create()
    await pgqrs.workflow().name("flow").store(store).trigger({}).execute()


async def play(role: str) -> None:
    store = await pgqrs.connect(os.environ["PGQRS_DSN"])
    await {"prepare": prepare, "early": early, "next": next_one}[role](store)
    sys.stdout.flush()
    os._exit(0)


def main() -> int:
    from tests.interop.conftest import VERSION, environment
    from tests.postgres_server import PostgresServer

    with PostgresServer.start() as server, tempfile.TemporaryDirectory() as elsewhere:
        theirs = experiment(f"pgqrs {VERSION}", environment(), server.create_database("theirs"), elsewhere)
        ours = experiment("this pgqrs", Path(sys.executable), server.create_database("ours"), elsewhere)
    return 0 if ours.count("written") == 3 and theirs else 1


def experiment(name: str, python: Path, dsn: str, elsewhere: str) -> str:
    """What was said. Either program ends; the early one is stopped for as long as the next one needs to have the run."""
    print(f"{name}:", flush=True)
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
    early_one = start("early")
    said = [_line(early_one)]
    os.waitpid(early_one.pid, os.WUNTRACED)
    following = start("next", said[0].split()[-1])
    said.append(_line(following))
    if "operator" in said[-1]:
        said.append(_line(following))
    early_one.send_signal(signal.SIGCONT)
    said += [line.rstrip() for line in early_one.communicate(timeout=30)[0].splitlines()]
    said += [line.rstrip() for line in following.communicate("go on\n", timeout=30)[0].splitlines()]
    print(*said, sep="\n", flush=True)
    return "\n".join(said)


def _line(program: subprocess.Popen[str]) -> str:
    assert program.stdout is not None
    return program.stdout.readline().rstrip()


if __name__ == "__main__":
    if sys.argv[1:]:
        asyncio.run(play(sys.argv[1]))
    sys.exit(main())
