"""Nobody waits for what stands behind him: behind a long step, behind a run that waits for another or does not leave."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pgqrs
from pgqrs.clients.blocking import Store
from tests.crashes import waiting_flows as flows
from tests.crashes.conftest import Proves
from tests.crashes.supervised import Supervised, eventually

pytestmark = pytest.mark.slow

TARGET = flows.__file__


@pgqrs.workflow
def nobody_runs_this() -> None: ...


@pytest.fixture
def store(sqlite_dsn: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("CRASHES_DSN", sqlite_dsn)
    with pgqrs.connect(sqlite_dsn) as store:
        store.install()
        yield store


def supervised(store: Store, tmp_path: Path, *options: str) -> Supervised:
    return Supervised(store.config.dsn, tmp_path / "log", *options, target=TARGET)


@pytest.mark.parametrize("lanes", [(), ("--lanes", "20")], ids=["lanes by what is measured", "20 lanes"])
def test_a_step_that_does_not_end_holds_up_nobody_else(
    store: Store, tmp_path: Path, lanes: tuple[str, ...], proves: Proves
) -> None:
    """Neither what had not begun in its worker nor what waited there for a commit."""
    with supervised(store, tmp_path, "--workers", "2", *lanes) as supervisor:
        for run in store.trigger_many(flows.naps, [((0.005,), {})] * 20):
            run.result(20)
        runs = store.trigger_many(flows.naps, [((60.0 if n == 25 else 0.005,), {}) for n in range(200)])
        at = time.monotonic()
        for n, run in enumerate(runs):
            if n != 25:
                run.result(20)
        took_s = time.monotonic() - at
        assert runs[25].status is pgqrs.WorkflowStatus.Running
        assert "killed" not in supervisor.said()
    proves(
        "a step does not end while its worker holds other runs, some of them begun",
        "the other runs continue in other workers",
        charged="nobody",
        seconds=took_s,
        within=10.0,
    )


@pytest.mark.parametrize("flow", [flows.asks_in_a_step, flows.asks_in_its_own_code], ids=lambda f: f.__name__)
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_runs_that_wait_for_others_do_not_keep_those_from_running(
    store: Store, tmp_path: Path, flow: Any, method: str
) -> None:
    count = 18 if method == "fork" else 6
    with supervised(store, tmp_path, "--workers", "2", "--start-method", method) as supervisor:
        runs = [store.trigger(flow, n) for n in range(count)]
        assert [run.result(40) for run in runs] == list(range(count)), supervisor.said()
        assert "killed" not in supervisor.said()
    assert "exited with" not in supervisor.said()


def test_a_chain_of_waits_has_an_end_and_the_error_names_both_runs(store: Store, tmp_path: Path) -> None:
    with supervised(store, tmp_path, "--workers", "1"):
        assert store.trigger(flows.deep, 8).result(30) == 9
        failed = store.trigger(flows.deep, 40)
        with pytest.raises(
            pgqrs.errors.RunFailedError, match=r"run \d+ waits for run \d+, and so do runs in 16"
        ):
            failed.result(40)


def test_a_run_that_waits_for_itself_is_told_so(store: Store, tmp_path: Path) -> None:
    with supervised(store, tmp_path, "--workers", "1"):
        run = store.trigger(flows.asks_for_itself)
        assert run.result(20) == f"run {run.id} waits for run {run.id}, which is itself"


def test_a_run_that_waits_does_not_hold_up_a_stop(store: Store, tmp_path: Path) -> None:
    """It waits for what nobody is left to do."""
    with supervised(store, tmp_path, "--workers", "1") as supervisor:
        later = store.trigger(nobody_runs_this)
        waits = store.trigger(flows.asks_for, later.id)
        eventually(lambda: waits.status is pgqrs.WorkflowStatus.Running)
        at = time.monotonic()
        supervisor.signal(signal.SIGTERM)
        assert supervisor.wait(15) == 0, supervisor.said()
        assert time.monotonic() - at < 10
        assert waits.record().crash_count == 0
        assert waits.status in (pgqrs.WorkflowStatus.Queued, pgqrs.WorkflowStatus.Running)


@pytest.mark.parametrize(
    ("stubborn", "innocent"),
    [(flows.stubborn, flows.child), (flows.async_stubborn, flows.async_innocent)],
    ids=["plain", "async"],
)
def test_a_run_that_does_not_leave_its_worker_is_ended_with_it(
    store: Store, tmp_path: Path, stubborn: Any, innocent: Any, proves: Proves
) -> None:
    with supervised(store, tmp_path, "--workers", "2") as supervisor:
        runs = [store.trigger(stubborn) for _ in range(2)]
        eventually(lambda: supervisor.said().count("failed, again in") >= 2, timeout=20)
        at = time.monotonic()
        arguments = (1,) if innocent is flows.child else ()
        for other in [store.trigger(innocent, *arguments) for _ in range(4)]:
            assert other.result(30) == 1
        eventually(lambda: "a bare `except:`" in supervisor.said(), timeout=20)
        took_s = time.monotonic() - at
        for run in runs:
            eventually(lambda run=run: run.steps(), timeout=20)
            assert run.record().crash_count == 0
    proves(
        "code continues after its run should have left the worker: a bare `except:` in a loop around a step",
        "the worker is killed after 5 s; the run is retried as planned",
        charged="nobody",
        seconds=took_s,
        within=15.0,
    )


@pytest.mark.parametrize("flow", [flows.forks, flows.async_forks], ids=["plain", "async"])
def test_a_forked_child_that_falls_through_takes_nothing_from_its_parent(
    store: Store, tmp_path: Path, flow: Any
) -> None:
    with supervised(store, tmp_path, "--workers", "1") as supervisor:
        runs = [store.trigger(flow) for _ in range(6)]
        assert [run.result(30) for run in runs] == [2] * 6, supervisor.said()
        assert all(len(run.steps()) == 2 for run in runs)


def test_runs_that_want_a_lock_which_another_holds_across_a_step_go_on(
    store: Store, tmp_path: Path, proves: Proves
) -> None:
    handles = store.trigger_many(flows.locked, range(8))
    with supervised(store, tmp_path, "--workers", "2", "--burst") as supervisor:
        assert supervisor.wait(60) == 0
    assert [h.result(0) for h in handles] == [2 * n + 1 for n in range(8)]
    assert [r.crash_count for r in store.runs()] == [0] * 8
    assert "runs of locked one at a time" in supervisor.said()
    proves(
        "runs of one worker wait for one another: one holds a lock across a step that the others want",
        "the worker is killed after 12 s; from then on each worker executes these runs one at a time",
        charged="nobody",
    )
