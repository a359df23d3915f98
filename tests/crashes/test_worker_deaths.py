"""A worker dies: its run goes on behind the last checkpoint, on another worker, and nothing else is disturbed."""

import os
import resource
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

import pgqrs
from pgqrs.program import targets
from supervisors.births.launch import Child, Loaded, LoadFailed, Restarted
from supervisors.births.nursery import DEATHS_MAX, FORK_S, Nursery
from tests.crashes import pipeline
from tests.crashes.conftest import Proves
from tests.crashes.supervised import (
    PIPELINE,
    Supervised,
    alive,
    children,
    connected,
    eventually,
    kill,
    starts,
)

pytestmark = [pytest.mark.slow, pytest.mark.processes, pytest.mark.backends("sqlite", "postgres")]

KILLS = int(os.environ.get("PGQRS_TEST_KILLS", "20"))
AGAIN_WITHIN_S, BATCHES = 0.1, 3  # the tests beside this one may have both cores for a whole batch
RECYCLES = int(os.environ.get("PGQRS_TEST_RECYCLES", "300"))


def test_a_killed_step_starts_again_on_another_worker_within_100_ms(
    dsn: str, tmp_path: Path, proves: Proves
) -> None:
    with connected(dsn) as store:
        store.install()
        with Supervised(
            dsn, tmp_path / "log", "--workers", "2", target=f"{PIPELINE}:three_steps"
        ) as supervisor:
            for batch in range(BATCHES):
                delays = sorted(
                    killed_and_started_again(store, supervisor, tmp_path / f"evidence-{batch}-{n}")
                    for n in range(KILLS)
                )
                told = {
                    f"p{p}": f"{delays[min(KILLS - 1, KILLS * p // 100)] * 1000:.1f} ms"
                    for p in (50, 90, 99, 100)
                }
                print(f"{KILLS} kills to the repeated body's start: {told}")
                if delays[KILLS // 2] < AGAIN_WITHIN_S:
                    break
    proves(
        "a worker is killed in a step, and another worker is free",
        "the step starts again in the other worker at once (the median of all kills)",
        charged="the run on the CPU: one crash",
        seconds=delays[KILLS // 2],
        within=AGAIN_WITHIN_S,
    )


def killed_and_started_again(store: pgqrs.Store, supervisor: Supervised, evidence: Path) -> float:
    """The seconds between."""
    handle = store.trigger(pipeline.three_steps, str(evidence), 30.0)
    begun = eventually(lambda: [s for s in starts(evidence) if s.step == "slow"])[0]
    eventually(lambda: len(supervisor.workers()) == 2)
    killed_at = kill(begun.pid)
    assert handle.result(10) == ["first", "slow", "last"]
    seen = starts(evidence)
    assert [s.step for s in seen] == ["first", "slow", "slow", "last"]
    assert seen[2].pid != begun.pid
    return seen[2].at - killed_at


@pytest.mark.parametrize(
    "how", ["SIGKILL", "SIGSEGV", "SIGABRT", "SIGBUS", "_exit(0)", "_exit(3)", "_exit(7) by a thread"]
)
def test_a_death_of_any_kind_costs_one_step_and_is_named(
    sqlite_dsn: str, tmp_path: Path, how: str, proves: Proves
) -> None:
    evidence = tmp_path / "evidence"
    with pgqrs.connect(sqlite_dsn) as store:
        handle = store.trigger(pipeline.dying, str(evidence), how, 1)
        with Supervised(sqlite_dsn, tmp_path / "log", "--workers", "1", "--burst") as supervisor:
            assert supervisor.wait() == 0, supervisor.said()
        assert handle.result(0) == how
        assert [s.step for s in starts(evidence)] == ["first", "die", "die"]
        step = handle.steps()[1]
        assert step.crash_count == 1
        if how.startswith("SIG"):
            assert step.crash["signal"] == how
        else:
            assert step.crash["exit_code"] == int(how[6])
        assert handle.record().crash_count == 0, "a checkpoint after the crash forgives it"
    proves(
        "a worker dies: a signal, `os._exit`, a crash in C",
        "the supervisor first reads the worker's pipe to its end, so every result that was sent is recorded; the run on the CPU continues after its last checkpoint in another worker; the step's row records the signal or exit code and the peak memory",
        charged="the run on the CPU: one crash",
    )


@pytest.mark.backends("sqlite", "turso", "s3", "postgres")
def test_a_step_that_always_kills_its_worker_is_given_up_after_five_deaths(
    dsn: str, tmp_path: Path, proves: Proves
) -> None:
    evidence = tmp_path / "evidence"
    with connected(dsn) as store:
        store.install()
        poison = store.trigger(pipeline.dying, str(evidence), "SIGKILL", 5)
        others = [store.trigger(pipeline.three_steps, str(tmp_path / f"other-{n}"), 0.0) for n in range(20)]
        with Supervised(dsn, tmp_path / "log", "--workers", "2", "--burst") as supervisor:
            assert supervisor.wait() == 0, supervisor.said()
        assert poison.status == pgqrs.WorkflowStatus.Error
        assert [s.step for s in starts(evidence)] == ["first"] + ["die"] * 5
        with pytest.raises(pgqrs.RunFailedError, match="died 5 times"):
            poison.result(0)
        assert [m.id for _, m in store.dead()] == [poison.id]
        for n, other in enumerate(others):
            assert other.result(0) == ["first", "slow", "last"]
            assert other.record().crash_count == 0
            assert [s.step for s in starts(tmp_path / f"other-{n}")] == ["first", "slow", "last"], (
                "charged to nobody else"
            )
        # A replay keeps what was recorded and starts the count anew.
        store.replay(poison.id)
        assert poison.status == pgqrs.WorkflowStatus.Queued
        with Supervised(dsn, tmp_path / "log", "--workers", "1", "--burst") as supervisor:
            assert supervisor.wait() == 0, supervisor.said()
        assert poison.result(0) == "SIGKILL"
        assert [s.step for s in starts(evidence)] == ["first"] + ["die"] * 6
    proves(
        "the same run kills workers again and again",
        "after a death the run has a worker to itself until its next checkpoint (`async def` runs share theirs); after 5 deaths without a checkpoint in between the run ends in ERROR and its message is dead; other runs are not affected; `pgqrs replay` queues the run again",
    )


def test_a_grandchild_that_keeps_the_pipe_open_hides_nothing_and_dies_too(
    sqlite_dsn: str, tmp_path: Path, proves: Proves
) -> None:
    evidence = tmp_path / "evidence"
    with pgqrs.connect(sqlite_dsn) as store:
        handle = store.trigger(pipeline.dying, str(evidence), "grandchild", 1)
        with Supervised(sqlite_dsn, tmp_path / "log", "--workers", "1", "--burst") as supervisor:
            assert supervisor.wait(10) == 0, supervisor.said()
        assert handle.result(0) == "grandchild"
        first, second = (s for s in starts(evidence) if s.step == "die")
        assert second.at - first.at < 1.0
    proves(
        "a worker dies and leaves a subprocess",
        "the supervisor notices the death at once and kills the subprocess too",
        charged="the run on the CPU: one crash",
        seconds=second.at - first.at,
        within=1.0,
    )


def test_sys_exit_in_a_step_fails_the_step_and_not_the_worker(
    sqlite_dsn: str, tmp_path: Path, proves: Proves
) -> None:
    with pgqrs.connect(sqlite_dsn) as store:
        handle = store.trigger(pipeline.leaving, str(tmp_path / "evidence"))
        with Supervised(sqlite_dsn, tmp_path / "log", "--workers", "1", "--burst") as supervisor:
            assert supervisor.wait() == 0, supervisor.said()
        assert handle.status == pgqrs.WorkflowStatus.Error
        assert "SystemExit" in handle.record().error["type"]
        assert "0 crashes" in supervisor.said()
    proves(
        "a step calls `sys.exit`",
        "the step fails as with any exception; the worker continues",
    )


def test_a_step_over_its_time_limit_is_killed_and_the_workflow_may_catch_it(
    dsn: str, tmp_path: Path, proves: Proves
) -> None:
    with connected(dsn) as store:
        store.install()
        caught = store.trigger(pipeline.hanging, str(tmp_path / "caught"), False)
        retried = store.trigger(pipeline.hanging, str(tmp_path / "retried"), True)
        with Supervised(dsn, tmp_path / "log", "--workers", "2", "--burst") as supervisor:
            assert supervisor.wait() == 0, supervisor.said()
        assert caught.result(0) == "timed out"
        assert [s.step for s in starts(tmp_path / "caught")] == ["hang_once"]
        assert retried.result(0) == "retried"
        assert len(starts(tmp_path / "retried")) == 2
        assert retried.steps()[0].retry_count == 1
        assert caught.record().crash_count == 0, "a time limit is not a crash"
        assert "in hang_once" in caught.steps()[0].error["traceback"], "it was asked where it was"
        assert "File " not in supervisor.said(), "that is no part of what user code prints"
    proves(
        "a step exceeds its `timeout`",
        "its worker gets SIGTERM, and SIGKILL a second later; the try is recorded as failed, with the stacks of its threads; the workflow gets `TimeoutError` when no try is left",
        charged="a retry",
    )


@pytest.mark.parametrize("whose", ["its own", "its supervisor's"])
def test_a_worker_says_where_it_is_and_goes_on(sqlite_dsn: str, tmp_path: Path, whose: str) -> None:
    """It is asked by its own pid, or as all those of its supervisor by that one's."""
    with pgqrs.connect(sqlite_dsn) as store:
        store.install()
        handle = store.trigger(pipeline.three_steps, str(tmp_path / "e"), 2.0)
        with Supervised(sqlite_dsn, tmp_path / "log", "--workers", "1") as supervisor:
            slow = eventually(lambda: [s for s in starts(tmp_path / "e") if s.step == "slow"])[0]
            asked = subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "pgqrs",
                    "stacks",
                    str(slow.pid if whose == "its own" else supervisor.pid),
                ],
                capture_output=True,
                text=True,
                check=False,
            )
            assert (asked.returncode, asked.stderr) == (0, "")
            assert f"worker {slow.pid} was asked; its supervisor prints what it says\n" in asked.stdout
            eventually(lambda: "in slow" in supervisor.said())
            assert handle.result(10) == ["first", "slow", "last"]
            for pid in (os.getpid(), 2**22 + 1):
                refused = subprocess.run(
                    [sys.executable, "-m", "pgqrs", "stacks", str(pid)],
                    capture_output=True,
                    text=True,
                    check=False,
                )
                assert refused.returncode == 2
                assert str(pid) in refused.stderr
            assert supervisor.process.poll() is None


def test_the_nursery_dies_and_workers_go_on_and_new_ones_come(
    sqlite_dsn: str, tmp_path: Path, proves: Proves
) -> None:
    evidence = tmp_path / "evidence"
    with pgqrs.connect(sqlite_dsn) as store:
        target = f"{PIPELINE}:three_steps"
        with Supervised(sqlite_dsn, tmp_path / "log", "--workers", "1", target=target) as supervisor:
            # A nursery killed in the middle of a fork takes that worker along: its supervisor has not heard of it.
            assert store.trigger(pipeline.three_steps, str(tmp_path / "before"), 0.0).result(10)
            workers = supervisor.workers()
            nursery = [
                p for p in children(supervisor.pid) if p not in workers and "nursery_main" in _command(p)
            ]
            assert len(nursery) == 1
            began = time.monotonic()
            os.kill(nursery[0], signal.SIGKILL)
            eventually(lambda: "the nursery died" in supervisor.said())
            noticed_s = time.monotonic() - began
            assert supervisor.workers() == workers
            handle = store.trigger(pipeline.three_steps, str(evidence), 30.0)
            begun = eventually(lambda: [s for s in starts(evidence) if s.step == "slow"])[0]
            kill(begun.pid)
            assert handle.result(10) == ["first", "slow", "last"]
            assert not alive(begun.pid)
    proves(
        "the nursery dies",
        "the supervisor starts a new nursery; workers continue",
        charged="nobody",
        seconds=noticed_s,
        within=2.0,
    )


def test_a_nursery_that_hangs_is_ended_and_a_new_one_takes_over(
    sqlite_dsn: str, tmp_path: Path, proves: Proves
) -> None:
    evidence = tmp_path / "evidence"
    with pgqrs.connect(sqlite_dsn) as store:
        target = f"{PIPELINE}:three_steps"
        with Supervised(sqlite_dsn, tmp_path / "log", "--workers", "1", target=target) as supervisor:
            # As above: stopped in the middle of a fork, it would keep the first worker from beginning.
            assert store.trigger(pipeline.three_steps, str(tmp_path / "before"), 0.0).result(10)
            [worker] = supervisor.workers()
            [nursery] = [p for p in children(supervisor.pid) if p != worker and "nursery_main" in _command(p)]
            os.kill(nursery, signal.SIGSTOP)
            handle = store.trigger(pipeline.three_steps, str(evidence), 30.0)
            begun = eventually(lambda: [s for s in starts(evidence) if s.step == "slow"])[0]
            killed_at = kill(begun.pid)
            assert handle.result(FORK_S + 10) == ["first", "slow", "last"]
            assert not alive(nursery)
        again = [s for s in starts(evidence) if s.step == "slow"][1]
    proves(
        "the nursery hangs: it does not answer an order for a worker within 10 s",
        "the supervisor kills the nursery and starts a new one; workers continue",
        charged="nobody",
        seconds=again.at - killed_at,
        within=FORK_S + 4.0,
    )


def test_a_nursery_that_dies_with_an_order_unread_is_replaced_as_any_other() -> None:
    """Reading from it is then an error (ECONNRESET) and not the end of what it said."""
    nursery = Nursery(targets.parse(str(PIPELINE)), 1024)
    try:
        nursery.load()
        pid = nursery._process.pid
        os.kill(pid, signal.SIGSTOP)
        nursery.launch(1, "sync")
        os.kill(pid, signal.SIGKILL)
        assert nursery.read() == [Restarted("killed by SIGKILL")]
    finally:
        nursery.close()


def test_a_nursery_that_dies_while_it_imports_is_replaced_a_few_times() -> None:
    nursery = Nursery(targets.parse(str(PIPELINE)), 1024)
    try:
        nursery.load()
        said: list[object] = []
        while not any(isinstance(news, LoadFailed) for news in said):
            pid = nursery._process.pid
            os.kill(pid, signal.SIGKILL)
            said += nursery.read()
        assert said[:-1] == [Restarted("killed by SIGKILL")] * (1 + DEATHS_MAX)
    finally:
        nursery.close()


def test_a_new_nursery_whose_import_hangs_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proves: Proves
) -> None:
    """By another that hangs, maybe: what does not come back is no reason to end what runs."""
    target = tmp_path / "hanging.py"
    target.write_text(
        "import pathlib, time, pgqrs\n"
        f"time.sleep(60 if pathlib.Path({str(tmp_path / 'hang')!r}).exists() else 0)\n"
        "@pgqrs.workflow\ndef flow(): ...\n"
    )
    monkeypatch.setattr("supervisors.births.nursery.IMPORT_S", 1.0)
    nursery = Nursery(targets.parse(str(target)), 1024)
    try:
        nursery.load()
        (tmp_path / "hang").touch()
        os.kill(nursery._process.pid, signal.SIGKILL)
        assert nursery.read() == [Restarted("killed by SIGKILL")]
        nursery.launch(1, "sync")
        hanging = nursery._process.pid
        nursery.look()
        assert alive(hanging), "an import may take as long as it did, and more"
        began = time.monotonic()
        while not select.select([nursery.fileno()], [], [], 0.05)[0]:
            nursery.look()
        ended_s = time.monotonic() - began
        (tmp_path / "hang").unlink()
        assert nursery.read() == [Restarted("killed by SIGKILL")]
        assert isinstance(nursery.read()[0], Loaded)
        [child] = nursery.read()
        assert isinstance(child, Child)
        child.close()
        child.reap()
    finally:
        nursery.close()
    proves(
        "a new nursery hangs in its import, which succeeded before",
        "the supervisor kills the nursery after 30 s or ten times the duration of the first import, and starts another one; workers continue",
        charged="nobody",
        seconds=ended_s,
        within=3.0,
    )


def test_a_checkpoint_is_recorded_while_the_function_s_own_code_goes_on(dsn: str, tmp_path: Path) -> None:
    """Its worker has nothing to send it with until that ends: the supervisor looks for itself."""
    gate = tmp_path / "gate"
    with connected(dsn) as store:
        store.install()
        run = store.trigger(pipeline.busy_between_steps, str(tmp_path / "e"), str(gate))
        with Supervised(dsn, tmp_path / "log", "--workers", "1", target=f"{PIPELINE}:busy_between_steps"):
            eventually(lambda: [s.step_name for s in run.steps()] == ["first"])
            assert run.status == "RUNNING"
            gate.touch()
            assert run.result(20) == ["first", "last"]


def test_a_death_in_the_function_s_own_code_does_not_repeat_the_step_before(dsn: str, tmp_path: Path) -> None:
    with connected(dsn) as store:
        store.install()
        run = store.trigger(pipeline.busy_between_steps, str(tmp_path / "e"), str(tmp_path / "gate"))
        with Supervised(dsn, tmp_path / "log", "--workers", "1", target=f"{PIPELINE}:busy_between_steps"):
            os.kill(eventually(lambda: starts(tmp_path / "e")[1:])[0].pid, signal.SIGKILL)
            assert run.result(20) == ["first", "last"]
        assert [s.step for s in starts(tmp_path / "e")] == ["first", "None", "None", "last"]
        assert run.record().attempt == 2


def test_a_replay_goes_over_a_recorded_dict_in_its_own_order(dsn: str, tmp_path: Path) -> None:
    """As jsonb has it, the second life of the run would ask for its steps in another order, and get one's result for another."""
    with connected(dsn) as store:
        store.install()
        run = store.trigger(pipeline.described, str(tmp_path / "mark"))
        with Supervised(dsn, tmp_path / "log", "--workers", "1", target=f"{PIPELINE}:described"):
            assert run.result(20) == [(n, f"this is {n}") for n in ("zebra", "ox", "a")]
        assert run.record().attempt == 2


def test_async_runs_survive_the_death_of_their_worker(
    sqlite_dsn: str, tmp_path: Path, proves: Proves
) -> None:
    with pgqrs.connect(sqlite_dsn) as store:
        handles = [store.trigger(pipeline.async_run, str(tmp_path / f"e{n}"), 1.0) for n in range(10)]
        with Supervised(sqlite_dsn, tmp_path / "log", "--workers", "1", "--burst") as supervisor:
            begun = eventually(lambda: [s for s in starts(tmp_path / "e9") if s.step == "async_slow"])[0]
            time.sleep(0.3)  # for the others to begin, and to wait
            kill(begun.pid)
            assert supervisor.wait() == 0, supervisor.said()
        for n, handle in enumerate(handles):
            assert handle.result(0) == ["first", "slept", "last"]
            steps = [s.step for s in starts(tmp_path / f"e{n}")]
            assert steps == ["first", "async_slow", "async_slow", "last"]
            assert handle.steps()[1].crash_count == 0
    proves(
        "the worker of `async` runs is killed from outside while all of them wait",
        "all of its runs continue after their last checkpoints",
        charged="nobody",
    )


@pytest.mark.parametrize("how", ["in its body", "in a task", "in a thread"])
def test_the_death_of_an_event_loop_is_charged_to_whose_code_it_ran(
    sqlite_dsn: str, tmp_path: Path, how: str, proves: Proves
) -> None:
    gate = tmp_path / "gate"
    with pgqrs.connect(sqlite_dsn) as store:
        runs = [store.trigger(pipeline.async_gated, str(tmp_path / f"e{n}"), str(gate)) for n in range(5)]
        poison = store.trigger(pipeline.async_dying, str(tmp_path / "poison"), how)
        runs += [store.trigger(pipeline.async_gated, str(tmp_path / f"f{n}"), str(gate)) for n in range(5)]
        with Supervised(sqlite_dsn, tmp_path / "log", "--workers", "1", "--burst") as supervisor:
            eventually(lambda: poison.status == pgqrs.WorkflowStatus.Error, what=supervisor.said)
            gate.touch()
            assert supervisor.wait() == 0, supervisor.said()
        assert "died 5 times" in poison.record().error["message"]
        assert [s.step for s in starts(tmp_path / "poison")] == ["async_die"] * 5
        for run in runs:
            assert run.result(0) == "through"
            assert (run.record().crash_count, run.steps()[0].crash_count) == (0, 0)
    proves(
        "the worker of `async` runs dies because of what one of them does, again and again",
        "the run whose code the worker executed is charged and in the end given up; the other runs repeat the step that they are in",
        charged="that run: one crash each time",
    )


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")


def test_a_step_over_its_memory_is_killed_and_the_workflow_may_catch_it(
    dsn: str, tmp_path: Path, proves: Proves
) -> None:
    with connected(dsn) as store:
        store.install()
        with Supervised(dsn, tmp_path / "log", "--workers", "1"):
            large = store.trigger(pipeline.hungry_run, str(tmp_path / "large"), 400)
            assert "memory limit of 200,000,000 bytes" in large.result(20)
            small = store.trigger(pipeline.hungry_run, str(tmp_path / "small"), 20)
            assert small.result(20) == "enough"
        assert large.steps()[1].error["type"] == "builtins.MemoryError"
        assert large.steps()[1].peak_rss_bytes > 200_000_000
        assert 20_000_000 < small.steps()[1].peak_rss_bytes < 200_000_000, "known of who lives too"
    proves(
        "a step exceeds its `memory`",
        "its worker is killed; the try is recorded as failed; the workflow gets `MemoryError` when no try is left",
        charged="a retry",
    )


def test_workers_are_replaced_after_so_many_runs_and_nothing_is_charged(
    sqlite_dsn: str, tmp_path: Path
) -> None:
    with pgqrs.connect(sqlite_dsn) as store:
        store.install()
        runs = [store.trigger(pipeline.three_steps, str(tmp_path / "e"), 0.0) for _ in range(40)]
        with Supervised(
            sqlite_dsn, tmp_path / "log", "--workers", "2", "--max-runs-per-worker", "5"
        ) as supervisor:
            for run in runs:
                assert run.result(20) == ["first", "slow", "last"]
        assert len({s.pid for s in starts(tmp_path / "e")}) >= 6
        assert "0 crashes" in supervisor.said() or "crash" not in supervisor.said()
        assert all(r.record().crash_count == 0 and r.record().attempt == 1 for r in runs)
        assert len(starts(tmp_path / "e")) == 120


def test_replaced_workers_leave_nothing_behind(sqlite_dsn: str, tmp_path: Path, proves: Proves) -> None:
    with pgqrs.connect(sqlite_dsn) as store:
        store.install()
        with Supervised(
            sqlite_dsn, tmp_path / "log", "--workers", "2", "--max-runs-per-worker", "1"
        ) as supervisor:
            nothing = str(tmp_path / "e")
            store.trigger(pipeline.three_steps, nothing, 0.0).result(20)
            eventually(lambda: len(supervisor.workers()) == 3)  # with that of `async def` functions
            before = held_by(supervisor.pid)
            last = store.trigger_many(pipeline.three_steps, [((nothing, 0.0), {})] * RECYCLES)[-1]
            last.result(110)
            eventually(lambda: len(supervisor.workers()) == 3)
            after = held_by(supervisor.pid)
        assert len({s.pid for s in starts(tmp_path / "e")}) == RECYCLES + 1
        assert after.descriptors <= before.descriptors + 3
        assert after.threads == before.threads
        assert after.rss_bytes <= before.rss_bytes + 10_000_000
        assert after.children <= before.children + 1
    proves(
        "hundreds of workers are replaced, one after the other",
        "descriptors, threads, memory and children of the supervisor stay the same",
        charged="nobody",
    )


class Held(NamedTuple):
    descriptors: int
    threads: int
    rss_bytes: int
    children: int  # zombies included


def held_by(pid: int) -> Held:
    proc = Path(f"/proc/{pid}")
    status = dict(
        line.split(":\t", 1) for line in (proc / "status").read_text().splitlines() if ":\t" in line
    )
    parents = [
        stat.read_text().rpartition(")")[2].split()[1]
        for stat in Path("/proc").glob("[0-9]*/stat")
        if stat.exists()
    ]
    return Held(
        len(list((proc / "fd").iterdir())),
        int(status["Threads"]),
        int(status["VmRSS"].split()[0]) * 1024,
        parents.count(str(pid)),
    )


def test_a_module_that_can_no_longer_be_imported_ends_the_supervisor_and_says_so(
    sqlite_dsn: str, tmp_path: Path, proves: Proves
) -> None:
    target = tmp_path / "changed.py"
    target.write_text(PIPELINE.read_text())
    with pgqrs.connect(sqlite_dsn) as store:
        store.install()
        options = ("--workers", "1")
        with Supervised(sqlite_dsn, tmp_path / "log", *options, target=f"{target}:three_steps") as supervisor:
            run = store.trigger(pipeline.three_steps, str(tmp_path / "e"), 30.0)
            body = eventually(lambda: starts(tmp_path / "e")[1:])[0]
            target.write_text("raise ImportError('half a deployment')")
            began = time.monotonic()
            [nursery] = [
                p for p in children(supervisor.pid) if p != body.pid and "nursery_main" in _command(p)
            ]
            os.kill(nursery, signal.SIGKILL)
            assert supervisor.wait(10) == 1
            ended_s = time.monotonic() - began
        assert "can no longer be imported" in supervisor.said()
        assert "half a deployment" in supervisor.said()
        assert not alive(body.pid)
        assert (run.record().crash_count, all(c.held == 0 for c in store.consumers())) == (0, True)
        target.write_text(PIPELINE.read_text())
        with Supervised(
            sqlite_dsn, tmp_path / "log2", *options, "--burst", target=f"{target}:three_steps"
        ) as second:
            assert second.wait() == 0
        assert run.result(0) == ["first", "slow", "last"]
    proves(
        "the nursery dies, and the module can no longer be imported",
        "the supervisor reports that and exits with status 1; executing runs are released",
        charged="nobody",
        seconds=ended_s,
        within=10.0,
    )


def test_a_supervisor_without_descriptors_for_another_worker_ends_and_says_so(
    sqlite_dsn: str, tmp_path: Path, proves: Proves
) -> None:
    with pgqrs.connect(sqlite_dsn) as store:
        store.install()
        run = store.trigger(pipeline.three_steps, str(tmp_path / "e"), 30.0)
        target = f"{PIPELINE}:three_steps"
        with Supervised(sqlite_dsn, tmp_path / "log", "--workers", "1", target=target) as supervisor:
            body = eventually(lambda: starts(tmp_path / "e")[1:])[0]
            _, hard = resource.prlimit(supervisor.pid, resource.RLIMIT_NOFILE)
            resource.prlimit(supervisor.pid, resource.RLIMIT_NOFILE, (8, hard))  # fewer than it has
            kill(body.pid)
            assert supervisor.wait(10) == 1, supervisor.said()
        assert "workers died while starting 5 times" in supervisor.said()
        assert "Too many open files" in supervisor.said()
        assert "Traceback" not in supervisor.said(), supervisor.said()
        assert run.record().crash_count == 1
        with Supervised(sqlite_dsn, tmp_path / "log2", "--workers", "1", "--burst", target=target) as second:
            assert second.wait() == 0, second.said()
        assert run.result(0) == ["first", "slow", "last"]
    proves(
        "the supervisor has no file descriptors left for another worker (EMFILE)",
        "the supervisor exits with status 1 and the reason; executing runs are released",
        charged="nobody",
    )
