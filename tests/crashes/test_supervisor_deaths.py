"""The supervisor dies or is told to stop: no orphan, no lost work, and the next one goes on."""

import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import psycopg
import pytest

import pgqrs
from supervisors.machine.identity import own_identity
from tests.crashes import pipeline
from tests.crashes.conftest import Proves
from tests.crashes.supervised import PIPELINE, Supervised, alive, connected, eventually, starts, supervise

pytestmark = [pytest.mark.slow, pytest.mark.processes, pytest.mark.backends("sqlite", "postgres")]


@pytest.mark.backends("sqlite", "turso", "s3", "postgres")
def test_killed_with_its_workers_gone_within_a_second_and_a_second_one_finishes(
    dsn: str, tmp_path: Path, proves: Proves
) -> None:
    with connected(dsn) as store:
        store.install()
        handles = [store.trigger(pipeline.three_steps, str(tmp_path / f"e{n}"), 2.0) for n in range(4)]
        with Supervised(dsn, tmp_path / "log", "--workers", "2") as supervisor:
            eventually(lambda: len(supervisor.workers()) == 3)
            eventually(
                lambda: (
                    len([n for n in range(4) if any(s.step == "slow" for s in starts(tmp_path / f"e{n}"))])
                    == 2
                )
            )
            workers = supervisor.workers()
            assert len(workers) == 3
            os.kill(supervisor.pid, signal.SIGKILL)
            eventually(lambda: not any(alive(p) for p in workers), timeout=1.0, what="the workers are gone")
        took_over = time.monotonic()
        with Supervised(dsn, tmp_path / "log2", "--workers", "2", "--burst") as second:
            assert second.wait() == 0, second.said()
        assert time.monotonic() - took_over < 10, "on the same host it need not wait for the lease"
        for n, handle in enumerate(handles):
            assert handle.result(0) == ["first", "slow", "last"]
            steps = [s.step for s in starts(tmp_path / f"e{n}")]
            assert steps in (
                ["first", "slow", "slow", "last"],
                ["first", "slow", "last"],
                ["first", "first", "slow", "last"],
            )
            assert handle.record().crash_count == 0
    proves(
        "the supervisor is killed",
        "its workers die with it; another supervisor continues",
        charged="nobody; a plain message's delivery counts if its handler had begun",
    )


def test_stopped_workers_die_with_it_too(sqlite_dsn: str, tmp_path: Path, proves: Proves) -> None:
    with Supervised(sqlite_dsn, tmp_path / "log", "--workers", "2") as supervisor:
        workers = eventually(lambda: supervisor.workers() if len(supervisor.workers()) == 3 else None)
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        os.kill(supervisor.pid, signal.SIGKILL)
        eventually(lambda: not any(alive(p) for p in workers), timeout=1.0, what="the workers are gone")
    proves(
        "the supervisor is killed while its workers are stopped",
        "its workers die too, within a second",
        charged="nobody",
    )


def test_term_finishes_what_runs_and_hands_back_the_rest(dsn: str, tmp_path: Path, proves: Proves) -> None:
    with connected(dsn) as store:
        store.install()
        running = store.trigger(pipeline.long_run, str(tmp_path / "running"), 1.0)
        with Supervised(dsn, tmp_path / "log", "--workers", "1", target=f"{PIPELINE}:long_run") as supervisor:
            eventually(lambda: len(starts(tmp_path / "running")) == 2)
            waiting = [store.trigger(pipeline.long_run, str(tmp_path / f"w{n}"), 0.0) for n in range(20)]
            time.sleep(0.3)
            supervisor.signal(signal.SIGTERM)
            assert supervisor.wait(10) == 0
        assert running.result(0) == "last"
        left = [h for h in waiting if h.status == pgqrs.WorkflowStatus.Queued]
        assert left, "what had not started was not started any more"
        assert all(m.held == 0 for m in store.consumers())
        assert "Traceback" not in supervisor.said()
        with Supervised(dsn, tmp_path / "log2", "--workers", "1", "--burst") as second:
            assert second.wait() == 0
        assert all(h.result(0) == "last" for h in waiting)
        for n in range(20):
            assert [s.step for s in starts(tmp_path / f"w{n}")] == ["first", "always_slow", "last"]
    proves(
        "SIGTERM or Ctrl-C",
        "the supervisor claims nothing more, releases runs that have not begun, and finishes executing runs",
        charged="nobody",
    )


def test_a_terminal_that_is_closed_lets_what_runs_finish(
    sqlite_dsn: str, tmp_path: Path, proves: Proves
) -> None:
    ours, theirs = os.openpty()
    command = supervise(sqlite_dsn, "--workers", "1")
    with pgqrs.connect(sqlite_dsn) as store:
        run = store.trigger(pipeline.long_run, str(tmp_path / "e"), 1.0)
        supervisor = subprocess.Popen(
            # A session of its own, whose terminal this becomes by opening it.
            [
                "setsid",
                "sh",
                "-c",
                f'exec "$@" < {os.ttyname(theirs)} > {os.ttyname(theirs)} 2>&1',
                "sh",
                *command,
            ]
        )
        try:
            os.close(theirs)
            eventually(lambda: len(starts(tmp_path / "e")) == 2)
            os.close(ours)
            supervisor.send_signal(signal.SIGHUP)  # as a shell does too: a second word of the same
            waiting = store.trigger(pipeline.long_run, str(tmp_path / "w"), 0.0)
            assert supervisor.wait(10) == 0
        finally:
            supervisor.kill()
        assert run.result(0) == "last"
        assert waiting.status == pgqrs.WorkflowStatus.Queued
        assert all(m.held == 0 for m in store.consumers())
    proves("the terminal is closed, or SIGHUP comes (without `nohup`)", "as with SIGTERM", charged="nobody")


def test_it_drains_when_nobody_reads_what_it_says(sqlite_dsn: str, tmp_path: Path, proves: Proves) -> None:
    """As `head` does in `pgqrs supervise app.py | head`."""
    command = supervise(sqlite_dsn, "--workers", "1")
    with pgqrs.connect(sqlite_dsn) as store:
        run = store.trigger(pipeline.talks, str(tmp_path / "e"), 1.0)
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as supervisor:
            assert supervisor.stdout
            assert supervisor.stderr
            eventually(lambda: starts(tmp_path / "e"))
            supervisor.stdout.close()
            supervisor.send_signal(signal.SIGINT)  # as Ctrl-C, which ends the reader too
            assert supervisor.wait(10) == 0
            assert supervisor.stderr.read() == b""
        assert run.result(0) == "said"
        assert all(m.held == 0 for m in store.consumers())
    proves("the reader of the supervisor's output ends, as `head` does", "as with SIGTERM", charged="nobody")


def test_output_that_goes_to_a_full_disk_stops_no_work(
    sqlite_dsn: str, tmp_path: Path, proves: Proves
) -> None:
    with pgqrs.connect(sqlite_dsn) as store, Path("/dev/full").open("w") as full:
        runs = [store.trigger(pipeline.talks, str(tmp_path / f"{n}"), 0.0) for n in range(20)]
        command = supervise(sqlite_dsn, "--burst")
        env = {
            k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"
        }  # which has no second try at exit
        supervisor = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=30, check=False, env=env
        )
        assert [run.result(0) for run in runs] == ["said"] * 20
    assert supervisor.stderr.count("No space left on device") == 1
    assert supervisor.returncode == 0
    proves(
        "the supervisor's output goes to a full disk",
        "the work continues; stderr reports once that lines are lost",
        charged="nobody",
    )


@pytest.mark.parametrize(("told", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_while_the_module_is_imported_a_signal_ends_it_at_once(
    sqlite_dsn: str, tmp_path: Path, told: signal.Signals, code: int
) -> None:
    target = tmp_path / "slow_to_import.py"
    target.write_text(
        f"import os, pathlib, time\npathlib.Path({str(tmp_path / 'begun')!r}).write_text(str(os.getpid()))\ntime.sleep(60)\n"
    )
    with Supervised(sqlite_dsn, tmp_path / "log", target=str(target)) as supervisor:
        importing = int(eventually(lambda: (begun := tmp_path / "begun").exists() and begun.read_text()))
        supervisor.signal(told)
        assert supervisor.wait(5) == code
        assert "Traceback" not in supervisor.said(), supervisor.said()
        eventually(lambda: not alive(importing), timeout=2)


def test_with_nohup_a_hangup_ends_nothing(sqlite_dsn: str, tmp_path: Path) -> None:
    with pgqrs.connect(sqlite_dsn) as store:
        first = store.trigger(pipeline.long_run, str(tmp_path / "e"), 0.0)
        with Supervised(sqlite_dsn, tmp_path / "log", "--workers", "1", within=["nohup"]) as supervisor:
            assert first.result(10) == "last"
            supervisor.signal(signal.SIGHUP)
            assert store.trigger(pipeline.long_run, str(tmp_path / "f"), 0.0).result(10) == "last"
            assert supervisor.process.poll() is None


def test_a_second_term_stops_at_the_next_step(sqlite_dsn: str, tmp_path: Path, proves: Proves) -> None:
    with pgqrs.connect(sqlite_dsn) as store:
        handle = store.trigger(pipeline.long_run, str(tmp_path / "e"), 1.0)
        with Supervised(sqlite_dsn, tmp_path / "log", "--workers", "1") as supervisor:
            eventually(lambda: len(starts(tmp_path / "e")) == 2)
            supervisor.signal(signal.SIGTERM)
            eventually(lambda: "stopping" in supervisor.said())
            supervisor.signal(signal.SIGTERM)
            assert supervisor.wait(10) == 0
        assert handle.status == pgqrs.WorkflowStatus.Running
        assert [s.step_name for s in handle.steps()] == ["first", "always_slow"], (
            "the step that ran was recorded"
        )
        with Supervised(sqlite_dsn, tmp_path / "log2", "--workers", "1", "--burst") as second:
            assert second.wait() == 0
        assert handle.result(0) == "last"
        assert [s.step for s in starts(tmp_path / "e")] == ["first", "always_slow", "last"]
    proves(
        "SIGTERM twice",
        "each run stops at its next step, and continues there under the next supervisor",
        charged="nobody",
    )


def test_a_third_term_stops_now(sqlite_dsn: str, tmp_path: Path, proves: Proves) -> None:
    with pgqrs.connect(sqlite_dsn) as store:
        handle = store.trigger(pipeline.long_run, str(tmp_path / "e"), 30.0)
        with Supervised(sqlite_dsn, tmp_path / "log", "--workers", "1") as supervisor:
            eventually(lambda: len(starts(tmp_path / "e")) == 2)
            for level in ("stopping: ", "stopping at", "stopping now"):
                supervisor.signal(signal.SIGTERM)
                eventually(lambda t=level: t in supervisor.said())  # type: ignore[misc]
            assert supervisor.wait(5) == 0
        assert handle.status == pgqrs.WorkflowStatus.Running
        assert handle.record().crash_count == 0
        assert all(c.held == 0 for c in store.consumers())
    proves(
        "SIGTERM three times",
        "workers are killed, and executing runs are released",
        charged="nobody",
    )


@pytest.mark.parametrize("times", [1, 2])
def test_the_drain_has_a_deadline(sqlite_dsn: str, tmp_path: Path, times: int, proves: Proves) -> None:
    with pgqrs.connect(sqlite_dsn) as store:
        handle = store.trigger(pipeline.long_run, str(tmp_path / "e"), 30.0)
        with Supervised(
            sqlite_dsn, tmp_path / "log", "--workers", "1", "--drain-timeout", "500ms"
        ) as supervisor:
            eventually(lambda: len(starts(tmp_path / "e")) == 2)
            for _ in range(times):  # at once: perhaps both before it looks
                supervisor.signal(signal.SIGINT)
            assert supervisor.wait(5) == 0
        assert handle.status == pgqrs.WorkflowStatus.Running
        assert handle.record().due_at is not None, "given back"
        assert handle.record().crash_count == 0
    proves(
        "a step runs longer than `--drain-timeout` after one or two SIGTERMs",
        "its worker is killed then, and the run is released",
        charged="nobody",
    )


def test_two_supervisors_on_one_queue_handle_each_message_once(postgres_dsn: str, tmp_path: Path) -> None:
    count = 20_000
    evidence = tmp_path / "evidence"
    with pgqrs.connect(postgres_dsn) as store:
        store.install()
        ids = store.enqueue_many("tasks", [{"evidence": str(evidence)}] * count)
        options = ("--workers", "2", "--burst")
        target = f"{PIPELINE}:handle"
        with (
            Supervised(postgres_dsn, tmp_path / "log1", *options, target=target) as one,
            Supervised(postgres_dsn, tmp_path / "log2", *options, target=target) as two,
        ):
            assert (one.wait(90), two.wait(90)) == (0, 0)
        handled = [line.split(" ") for line in evidence.read_text().splitlines()]
        assert sorted(int(h[0]) for h in handled) == ids
        assert len({h[1] for h in handled}) == 4, "both took part"
        [queue] = [q for q in store.queues() if q.queue_name == "tasks"]
        assert (queue.archived, queue.ready, queue.held, queue.dead) == (count, 0, 0, 0)


def test_a_message_that_fails_is_delivered_again_and_then_dead(
    sqlite_dsn: str, tmp_path: Path, proves: Proves
) -> None:
    with pgqrs.connect(sqlite_dsn) as store:
        message = store.enqueue("tasks", {"evidence": str(tmp_path / "e"), "fail": "yes"})
        options = ("--workers", "1", "--max-read-ct", "2")
        with Supervised(sqlite_dsn, tmp_path / "log", *options, target=f"{PIPELINE}:handle"):
            eventually(lambda: store.dead())
        [(queue, dead)] = store.dead()
        assert (queue, dead.id, dead.read_ct) == ("tasks", message, 2)
        assert "cannot handle this" in (dead.dead_reason or "")
        assert len((tmp_path / "e").read_text().splitlines()) == 2
    proves(
        "a handler raises",
        "the message is delivered again after a back-off, up to `max_read_ct` deliveries, and is dead then",
        charged="a delivery",
    )


def test_a_pause_frees_the_worker_until_it_is_resumed(dsn: str, tmp_path: Path) -> None:
    with connected(dsn) as store:
        store.install()
        handle = store.trigger(pipeline.pausing, str(tmp_path / "e"))
        with Supervised(dsn, tmp_path / "log", "--workers", "1"):
            eventually(lambda: handle.status == pgqrs.WorkflowStatus.Paused)
            other = store.trigger(pipeline.three_steps, str(tmp_path / "other"), 0.0)
            assert other.result(10) == ["first", "slow", "last"]
            assert handle.status == pgqrs.WorkflowStatus.Paused
            assert handle.resume()
            assert handle.result(10) == "last"
        assert [s.step for s in starts(tmp_path / "e")] == ["first", "last"]


def test_a_retry_waits_in_the_queue_and_not_on_a_worker(dsn: str, tmp_path: Path, proves: Proves) -> None:
    with connected(dsn) as store:
        store.install()
        handle = store.trigger(pipeline.retrying, str(tmp_path / "e"))
        with Supervised(dsn, tmp_path / "log", "--workers", "1"):
            assert handle.result(10) == 3
        assert [s.step for s in starts(tmp_path / "e")] == ["first", "flaky", "flaky", "flaky"]
        assert handle.steps()[1].retry_count == 2
    proves(
        "a step raises",
        "the failure is recorded; with `retry` the run waits in its queue for the back-off and retries the step; without, the workflow gets the exception, now and on every replay",
        charged="a retry",
    )


def test_a_cancelled_run_stops_at_its_next_step(dsn: str, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with connected(dsn) as store:
        store.install()
        handle = store.trigger(pipeline.gated, str(tmp_path / "e"), str(gate))
        with Supervised(dsn, tmp_path / "log", "--workers", "1"):
            eventually(lambda: len(starts(tmp_path / "e")) == 2)
            assert handle.cancel() == pgqrs.WorkflowStatus.Cancelling
            gate.touch()
            with pytest.raises(pgqrs.RunCancelledError):
                handle.result(10)
        assert [s.step for s in starts(tmp_path / "e")] == ["first", "wait_for"]


def test_a_run_that_is_cancelled_now_does_not_reach_the_end_of_its_step(
    dsn: str, tmp_path: Path, proves: Proves
) -> None:
    with connected(dsn) as store:
        store.install()
        handle = store.trigger(pipeline.long_run, str(tmp_path / "e"), 60.0)
        with Supervised(dsn, tmp_path / "log", "--workers", "1"):
            [_, slow] = eventually(lambda: (s := starts(tmp_path / "e"))[1:] and s)
            assert handle.cancel(now=True) == pgqrs.WorkflowStatus.Cancelled
            with pytest.raises(pgqrs.RunCancelledError):
                handle.result(1)
            eventually(lambda: not alive(slow.pid), timeout=3)
            after = store.trigger(pipeline.three_steps, str(tmp_path / "after"), 0.0)
            assert after.result(10) == ["first", "slow", "last"]
        assert [s.step for s in starts(tmp_path / "e")] == ["first", "always_slow"]
        assert handle.record().crash_count == 0
    proves(
        "an operator cancels a run with `--now`",
        "every later write for the run is refused; the supervisor notices within a second or so and kills the run's worker",
        charged="nobody",
    )


def test_workers_that_die_while_starting_end_the_supervisor_with_the_reason(
    sqlite_dsn: str, tmp_path: Path, proves: Proves
) -> None:
    target = tmp_path / "stillborn.py"
    target.write_text(
        "import os, pgqrs\n"
        "os.register_at_fork(after_in_child=lambda: os._exit(9))\n"
        "@pgqrs.workflow\ndef w() -> None: ...\n"
    )
    with Supervised(sqlite_dsn, tmp_path / "log", "--workers", "1", target=str(target)) as supervisor:
        assert supervisor.wait(30) == 1
    assert "workers died while starting 5 times" in supervisor.said()
    assert "os.register_at_fork" in supervisor.said(), "it says where to look"
    proves(
        "workers die while they start",
        "the supervisor retries after longer and longer delays; after five deaths within 30 s, with no running worker left, it exits with status 1 and the reason",
    )


def test_what_steps_print_is_tagged_with_their_run(sqlite_dsn: str, tmp_path: Path) -> None:
    with pgqrs.connect(sqlite_dsn) as store:
        handle = store.trigger(pipeline.printing, 3)
        with Supervised(sqlite_dsn, tmp_path / "log", "--workers", "1", "--burst") as supervisor:
            assert supervisor.wait() == 0
    said = [line.partition(" ")[2] for line in supervisor.said().splitlines()]  # after the time
    for text in ("line 0", "line 1", "line 2", "from a subprocess"):
        assert f"run {handle.id} | {text}" in said, supervisor.said()


def test_the_demo_survives_chaos(dsn: str) -> None:
    with connected(dsn) as store:
        store.install()
    command = [sys.executable, "-m", "pgqrs", "demo", "--chaos", "--limit", "60", "--dsn", dsn]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "proven: every run finished" in done.stdout


@pytest.mark.parametrize("stopped", ["the supervisor", "its worker too"])
@pytest.mark.backends("sqlite", "s3", "postgres")
def test_one_that_was_stopped_past_its_lease_writes_nothing_late(
    dsn: str, tmp_path: Path, stopped: str, proves: Proves
) -> None:
    evidence = tmp_path / "e"
    with connected(dsn) as store:
        store.install()
        handle = store.trigger(pipeline.three_steps, str(evidence), 1.0)
        options = ("--workers", "1", "--lease", "2s")
        target = f"{PIPELINE}:three_steps"
        with Supervised(dsn, tmp_path / "log1", *options, target=target) as late:
            body = eventually(lambda: [s for s in starts(evidence) if s.step == "slow"])[0]
            frozen = [late.pid, *([body.pid] if stopped == "its worker too" else [])]
            if body.pid in frozen:
                os.kill(body.pid, signal.SIGSTOP)  # else the worker works on, and reports to nobody
            stop_between_transactions(late.pid, dsn)
            with Supervised(dsn, tmp_path / "log2", *options, target=target) as other:
                assert handle.result(20) == ["first", "slow", "last"]
                assert "took back 1 message of" in other.said()
                before = (handle.record(), handle.steps())
                for pid in reversed(frozen):
                    os.kill(pid, signal.SIGCONT)
                eventually(lambda: "the lease ran out" in late.said())
                eventually(lambda: not alive(body.pid))
                again = store.trigger(pipeline.three_steps, str(tmp_path / "e2"), 0.0)
                assert again.result(10) == ["first", "slow", "last"]
                assert (handle.record(), handle.steps()) == before
                eventually(
                    lambda: len({c.host for c in store.consumers()}) == 1 and len(store.consumers()) == 2
                )
        assert [s.step for s in starts(evidence)] == ["first", "slow", "slow", "last"]
        assert handle.record().attempt == 2
    proves(
        "a supervisor is stopped for longer than its lease (SIGSTOP, a frozen host) and then continues, with its workers or without",
        "another supervisor has taken over; no body starts before the worker reads that the lease was renewed; executing steps are killed, and nothing of them is written",
        charged="nobody",
    )


def stop_between_transactions(pid: int, dsn: str) -> None:
    """One that is stopped within one keeps a file locked, and everybody out of it; a server would end it after seconds. Another
    process tries, since what this one has open is patient. Not for Turso: with the driver's experiment its file is locked nearly
    all the time (docs/backends.md)."""
    probe = [sys.executable, "-m", "pgqrs", "install", "--dsn", dsn]
    for _ in range(10):
        os.kill(pid, signal.SIGSTOP)
        with suppress(subprocess.TimeoutExpired):
            subprocess.run(probe, check=True, capture_output=True, timeout=3)
            return
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.05)  # to get out of this one: it would be found there again
    raise AssertionError("never found between two transactions")


@pytest.mark.backends("sqlite", "s3", "postgres")
def test_a_burst_that_lost_its_lease_goes_on_with_what_it_held(dsn: str, tmp_path: Path) -> None:
    """It is not at its end because everything is still held, by what it was before."""
    gate = tmp_path / "gate"
    with connected(dsn) as store:
        store.install()
        runs = [store.trigger(pipeline.gated, str(tmp_path / f"{n}"), str(gate)) for n in range(4)]
        options = ("--workers", "1", "--lease", "2s", "--burst")
        with Supervised(dsn, tmp_path / "log", *options, target=f"{PIPELINE}:gated") as supervisor:
            eventually(lambda: starts(tmp_path / "0"))
            stop_between_transactions(supervisor.pid, dsn)
            time.sleep(3.5)  # on S3 a lease of 2 s is over after 3
            supervisor.signal(signal.SIGCONT)
            eventually(lambda: "the lease ran out" in supervisor.said(), what=supervisor.said)
            gate.touch()
            assert supervisor.wait(60) == 0, supervisor.said()
        assert [run.status for run in runs] == ["SUCCESS"] * 4
    finished = [line for line in supervisor.said().splitlines() if "nothing left to do" in line]
    assert "4 finished" in finished[-1], "what was not recorded does not count"


@pytest.mark.parametrize("how", ["killed", "lost its lease"])
def test_a_burst_does_not_end_before_a_dead_one_s_locked_runs_came_back(
    postgres_dsn: str, tmp_path: Path, how: str
) -> None:
    """The last transaction of the dead one may still go on in the server."""
    gate = tmp_path / "gate"
    options = ("--workers", "1", "--lease", "2s", "--burst")
    with pgqrs.connect(postgres_dsn) as store:
        store.install()
        run = store.trigger(pipeline.gated, str(tmp_path / "e"), str(gate))
        target = f"{PIPELINE}:gated"
        with ExitStack() as stack:
            supervisor = stack.enter_context(
                Supervised(postgres_dsn, tmp_path / "log", *options, target=target)
            )
            eventually(lambda: starts(tmp_path / "e"))
            stop_between_transactions(supervisor.pid, postgres_dsn)
            with psycopg.connect(postgres_dsn) as other:
                other.execute("select 1 from pgqrs_messages for update")
                heir = supervisor
                if how == "killed":
                    supervisor.process.kill()
                    supervisor.wait()
                    heir = stack.enter_context(
                        Supervised(postgres_dsn, tmp_path / "log2", *options, target=target)
                    )
                else:
                    time.sleep(3.0)
                    supervisor.signal(signal.SIGCONT)
                eventually(lambda: "locked by another session" in heir.said(), what=heir.said)
                gate.touch()
                assert heir.process.poll() is None, heir.said()
            assert heir.wait(20) == 0, heir.said()
        assert run.status == "SUCCESS"


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_one_whose_file_was_replaced_says_so(
    sqlite_dsn: str, tmp_path: Path, how: str, proves: Proves
) -> None:
    """It would go on in a file that nobody else can open."""
    path = Path(sqlite_dsn.removeprefix("sqlite://"))
    with pgqrs.connect(sqlite_dsn) as store:
        assert store.trigger(pipeline.three_steps, str(tmp_path / "e"), 0.0)
    with Supervised(sqlite_dsn, tmp_path / "log", "--workers", "1") as supervisor:
        eventually(lambda: len(starts(tmp_path / "e")) == 3)
        for file in path.parent.glob(f"{path.name}*"):
            file.unlink()
        if how == "replaced":
            with pgqrs.connect(sqlite_dsn) as store:
                store.install()
        assert supervisor.wait(10) == 3, supervisor.said()
        assert "was removed or replaced while this" in supervisor.said()
        assert "Traceback" not in supervisor.said(), supervisor.said()
    proves(
        "the supervisor's SQLite file is removed or replaced",
        "the supervisor reports that and exits with status 3",
        charged="nobody",
    )


def test_one_whose_database_was_replaced_meanwhile_says_so(postgres_dsn: str, tmp_path: Path) -> None:
    with pgqrs.connect(postgres_dsn) as store:
        store.install()
        run = store.trigger(pipeline.three_steps, str(tmp_path / "e"), 60.0)
        options = ("--workers", "1", "--lease", "2s")
        with Supervised(postgres_dsn, tmp_path / "log", *options) as supervisor:
            eventually(lambda: run.status == "RUNNING")
            stop_between_transactions(supervisor.pid, postgres_dsn)
            with psycopg.connect(postgres_dsn, autocommit=True) as connection:
                connection.execute("drop schema public cascade")
                connection.execute("create schema public")
            store.install()
            supervisor.signal(signal.SIGCONT)
            assert supervisor.wait(20) != 0, supervisor.said()
        said = supervisor.said()
        assert "the database was replaced by another" in said, said
        assert "Traceback" not in said, said


def test_a_result_that_comes_when_the_run_is_another_s_is_refused_and_said(
    dsn: str, tmp_path: Path, proves: Proves
) -> None:
    """As where the clock by which a supervisor reckons its lease goes wrong: it knows nothing of its loss when it writes."""
    evidence, gate = tmp_path / "e", tmp_path / "gate"
    options = ("--workers", "1", "--lease", "15s")  # renewed every 5 s: it is not to find out that way
    target = f"{PIPELINE}:gated"
    with pgqrs.connect(dsn) as store:
        store.install()
        run = store.trigger(pipeline.gated, str(evidence), str(gate))
        with Supervised(dsn, tmp_path / "log", *options, target=target) as late:
            eventually(lambda: starts(evidence)[1:])
            before = run.steps()
            stop_between_transactions(late.pid, dsn)  # or it might take its own run back, and claim it anew
            [(supervisor_id, _, _)] = store.messages.watched(own_identity())[0]
            store.messages.expire_lease(supervisor_id)
            assert store.messages.recover(5) == 1
            [queue] = [q for q in store.queues() if q.queue_name == "gated"]
            consumer = store.consumer("gated")
            [taken] = consumer.dequeue(1)
            assert (queue.held, taken.id) == (0, run.id)
            gate.touch()
            late.signal(signal.SIGCONT)
            eventually(lambda: "taken over by somebody else" in late.said())
            assert run.steps() == before
            consumer.release_messages([run.id])
            # It claims again after the renewal that tells it, up to 5 s later.
            assert run.result(45) == ["first", "waited", "last"], late.said()
            assert (run.record().attempt, run.record().crash_count) == (2, 0)
    assert [s.step for s in starts(evidence)] == ["first", "wait_for", "wait_for", "last"]
    proves(
        "a result arrives for a run that belongs to another supervisor by now",
        "the fence refuses the result, and a note says so; nothing of it is written",
        charged="nobody",
    )
