"""The network between a supervisor and PostgreSQL fails, in every way that a proxy can make it fail."""

import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import pgqrs
from tests.crashes import pipeline
from tests.crashes.conftest import Proves
from tests.crashes.proxy import Commit, Mode, Proxy
from tests.crashes.supervised import PIPELINE, Supervised, alive, eventually, starts

pytestmark = [pytest.mark.slow, pytest.mark.postgres]

THREE_STEPS = f"{PIPELINE}:three_steps"
ONCE = ["first", "slow", "last"]


@pytest.fixture
def proxy(postgres_dsn: str) -> Iterator[Proxy]:
    with pgqrs.connect(postgres_dsn) as store:
        store.install()
    with Proxy(postgres_dsn) as proxy:
        yield proxy


def trigger(dsn: str, folder: Path, count: int, seconds: float) -> list[tuple[int, Path]]:
    """(run, its evidence) of each."""
    with pgqrs.connect(dsn) as store:
        found = []
        for n in range(count):
            evidence = folder / f"run-{n}"
            found.append((store.trigger(pipeline.three_steps, str(evidence), seconds).id, evidence))
        return found


def all_succeed(dsn: str, runs: Sequence[tuple[int, Path]], supervisor: Supervised) -> None:
    """And no step was taken back. What it means that one *may* be repeated is said where it may."""
    with pgqrs.connect(dsn) as store:
        for run, _ in runs:
            eventually(lambda r=run: store.run(r).status.terminal, timeout=30, what=supervisor.said)  # type: ignore[misc]
            assert store.run(run).status == pgqrs.WorkflowStatus.Success
    assert "Traceback" not in supervisor.said(), supervisor.said()


def test_connections_that_are_reset_cost_nothing(
    proxy: Proxy, postgres_dsn: str, tmp_path: Path, proves: Proves
) -> None:
    runs = trigger(postgres_dsn, tmp_path, 60, 0.02)
    with Supervised(proxy.dsn, tmp_path / "log", "--workers", "2", target=THREE_STEPS) as supervisor:
        eventually(lambda: starts(runs[0][1]))
        for n in range(10):
            eventually(lambda n=n: starts(runs[5 * n][1]), what=supervisor.said)  # type: ignore[misc]
            proxy.reset_all()
        all_succeed(postgres_dsn, runs, supervisor)
    assert all([s.step for s in starts(evidence)] == ONCE for _, evidence in runs)
    proves(
        "the supervisor's connections to the database are reset, ten times over",
        "the turn under way is repeated until it is known to be committed; no step runs again",
        charged="nobody",
    )


@pytest.mark.parametrize("commit", ["reaches the server", "gets lost"])
def test_a_commit_whose_answer_is_lost_is_found_out_and_not_repeated(
    proxy: Proxy, postgres_dsn: str, tmp_path: Path, commit: Commit, proves: Proves
) -> None:
    runs = trigger(postgres_dsn, tmp_path, 15, 0.0)
    options = ("--workers", "1", "--lanes", "1")  # so that every step has a commit of its own
    with Supervised(proxy.dsn, tmp_path / "log", *options, target=THREE_STEPS) as supervisor:
        eventually(lambda: starts(runs[0][1]))
        proxy.cut_commits(commit)
        all_succeed(postgres_dsn, runs, supervisor)
    assert proxy.cuts >= 10
    assert "another's" not in supervisor.said(), "its own commit is known as its own"
    assert all([s.step for s in starts(evidence)] == ONCE for _, evidence in runs)
    proves(
        "the connection is cut between COMMIT and its answer, whether or not the server received the COMMIT",
        "the writes are repeated under the same claim and count once; messages that were claimed without an answer are released",
        charged="nobody",
    )


@pytest.mark.parametrize(("delay_s", "lease", "count"), [(0.02, "3s", 6), (0.15, "5s", 1)])
def test_a_slow_link_slows_and_breaks_nothing(
    proxy: Proxy, postgres_dsn: str, tmp_path: Path, delay_s: float, lease: str, count: int, proves: Proves
) -> None:
    options = ("--workers", "2", "--lease", lease)
    with Supervised(proxy.dsn, tmp_path / "log", *options, target=THREE_STEPS) as supervisor:
        eventually(supervisor.workers)
        proxy.delay_s = delay_s
        runs = trigger(postgres_dsn, tmp_path, count, 0.0)
        all_succeed(postgres_dsn, runs, supervisor)
        assert "the lease ran out" not in supervisor.said()
    assert all([s.step for s in starts(evidence)] == ONCE for _, evidence in runs)
    proves(
        "each way between supervisor and database takes 20 ms longer, or 150 ms",
        "turns get slower and larger; the lease is still renewed",
    )


def test_a_stall_shorter_than_the_lease_costs_its_time_only(
    proxy: Proxy, postgres_dsn: str, tmp_path: Path, proves: Proves
) -> None:
    runs = trigger(postgres_dsn, tmp_path, 30, 0.02)
    options = ("--workers", "2", "--lease", "6s")
    with Supervised(proxy.dsn, tmp_path / "log", *options, target=THREE_STEPS) as supervisor:
        eventually(lambda: starts(runs[0][1]))
        proxy.become("stalled")
        time.sleep(1.5)  # the fault itself: this long
        proxy.become("flowing")
        all_succeed(postgres_dsn, runs, supervisor)
        assert "the lease ran out" not in supervisor.said()
    assert all([s.step for s in starts(evidence)] == ONCE for _, evidence in runs)
    proves(
        "the database does not answer for less than the lease",
        "runs wait for it; no step runs again",
        "nobody",
    )


@pytest.mark.parametrize("mode", ["stalled", "trickling", "half open", "refusing"])
def test_a_supervisor_cut_off_for_longer_than_its_lease_kills_what_it_runs_and_joins_anew(
    proxy: Proxy, postgres_dsn: str, tmp_path: Path, mode: Mode, proves: Proves
) -> None:
    lease_s = 2.5
    options = ("--workers", "1", "--lease", f"{lease_s}s")
    with (
        pgqrs.connect(postgres_dsn) as store,
        Supervised(proxy.dsn, tmp_path / "log", *options, target=THREE_STEPS) as cut_off,
    ):
        evidence = tmp_path / "e"
        run = store.trigger(pipeline.three_steps, str(evidence), 30.0)
        body = eventually(lambda: starts(evidence)[1:])[0]
        began = time.monotonic()
        proxy.become(mode)
        eventually(lambda: not alive(body.pid), timeout=lease_s + 1, what=cut_off.said)
        fenced_s = time.monotonic() - began
        with Supervised(postgres_dsn, tmp_path / "log2", *options, target=THREE_STEPS) as other:
            assert run.result(20) == ONCE, other.said()
            proxy.become("flowing")
            assert (run.record().attempt, run.record().crash_count) == (2, 0)
            recorded = [(s.step_name, s.pid) for s in run.steps()]
            other.__exit__()
        assert [s.step for s in starts(evidence)] == ["first", "slow", "slow", "last"]
        anew = store.trigger(pipeline.three_steps, str(tmp_path / "e2"), 0.0)
        assert anew.result(8) == ONCE, "what waited on a silent link was broken off"
        assert [(s.step_name, s.pid) for s in run.steps()] == recorded, "nothing was written late"
        assert "the lease ran out" in cut_off.said()
        assert "Traceback" not in cut_off.said(), cut_off.said()
    proves(
        "the database does not answer for longer than the lease: stalled, a byte a second, half open or refusing",
        "the supervisor kills its executing runs before another one may take them over; another supervisor continues after the last checkpoint; when the network is back the first one registers again and writes nothing late",
        charged="nobody",
        seconds=fenced_s,
        within=lease_s,
    )


def test_one_that_is_told_to_stop_while_nothing_answers_ends_all_the_same(
    proxy: Proxy, postgres_dsn: str, tmp_path: Path, proves: Proves
) -> None:
    options = ("--workers", "1", "--lease", "2.5s")
    with (
        pgqrs.connect(postgres_dsn) as store,
        Supervised(proxy.dsn, tmp_path / "log", *options, target=THREE_STEPS) as supervisor,
    ):
        run = store.trigger(pipeline.three_steps, str(tmp_path / "e"), 30.0)
        body = eventually(lambda: starts(tmp_path / "e")[1:])[0]
        proxy.become("half open")
        began = time.monotonic()
        for said in ("stopping: ", "stopping at", "stopping now"):
            supervisor.signal(signal.SIGTERM)
            eventually(lambda s=said: s in supervisor.said())  # type: ignore[misc]
        assert supervisor.wait(20) == 3, supervisor.said()
        ended_s = time.monotonic() - began
        assert not alive(body.pid)
        with Supervised(postgres_dsn, tmp_path / "log2", *options, target=THREE_STEPS):
            assert run.result(20) == ONCE
        assert run.record().crash_count == 0
    proves(
        "a supervisor is told three times to stop while the database does not answer",
        "the supervisor exits with status 3 when its lease ends; executing runs are released when the lease expires",
        charged="nobody",
        seconds=ended_s,
        within=15.0,
    )
