"""A supervisor dies, or its host is cut off: another takes over, at once on the same host, after the lease on another."""

import os
import signal
import time
from pathlib import Path

import psycopg
import pytest

import pgqrs
from tests.crashes import pipeline
from tests.crashes.conftest import Proves
from tests.crashes.hosts import Host
from tests.crashes.proxy import Proxy
from tests.crashes.supervised import PIPELINE, Supervised, alive, connected, eventually, kill, starts

pytestmark = [pytest.mark.slow, pytest.mark.postgres, pytest.mark.processes]

THREE_STEPS = f"{PIPELINE}:three_steps"
ONCE = ["first", "slow", "last"]
TWICE = ["first", "slow", "slow", "last"]
LEASE_S = 3.0
OPTIONS = ("--workers", "1", "--lease", f"{LEASE_S}s")
LONG_LEASE = ("--workers", "1", "--lease", "60s")  # nobody could wait for that


def test_a_new_supervisor_takes_over_on_the_same_host_at_once(
    dsn: str, tmp_path: Path, proves: Proves
) -> None:
    with connected(dsn) as store:
        store.install()
        run = store.trigger(pipeline.three_steps, str(tmp_path / "e"), 30.0)
        with Supervised(dsn, tmp_path / "log", *LONG_LEASE, target=THREE_STEPS) as first:
            eventually(lambda: starts(tmp_path / "e")[1:])
            os.kill(first.pid, signal.SIGKILL)
            first.wait()
        with Supervised(dsn, tmp_path / "log2", *LONG_LEASE, target=THREE_STEPS) as second:
            eventually(lambda: "payloads and results" in second.said())
            up_at = time.time()
            assert run.result(10) == ONCE
        again = [s for s in starts(tmp_path / "e") if s.step == "slow"][1]
        assert (run.record().attempt, run.record().crash_count) == (2, 0)
    proves(
        "a supervisor is killed, and another one starts on the same host",
        "the new one takes over at once, whatever the lease; runs continue after their last checkpoint",
        charged="nobody; a plain message's delivery counts if its handler had begun",
        seconds=max(0.0, again.at - up_at),
        within=1.0,
    )


def test_one_that_runs_already_takes_over_on_the_same_host_within_seconds(
    dsn: str, tmp_path: Path, proves: Proves
) -> None:
    with connected(dsn) as store:
        store.install()
        run = store.trigger(pipeline.three_steps, str(tmp_path / "e"), 30.0)
        with Supervised(dsn, tmp_path / "log", *LONG_LEASE, target=THREE_STEPS) as first:
            eventually(lambda: starts(tmp_path / "e")[1:])
            with Supervised(dsn, tmp_path / "log2", *LONG_LEASE, target=THREE_STEPS) as second:
                eventually(lambda: "payloads and results" in second.said())
                killed_at = kill(first.pid)
                first.wait()
                assert run.result(10) == ONCE
                assert "took back 1 message of" in second.said()
        again = [s for s in starts(tmp_path / "e") if s.step == "slow"][1]
    proves(
        "a supervisor is killed while another one runs on the same host",
        "the other one looks once a second, and takes over, whatever the lease",
        charged="nobody; a plain message's delivery counts if its handler had begun",
        seconds=again.at - killed_at,
        within=2.0,
    )


def test_one_on_another_host_takes_over_when_the_lease_ends(
    postgres_dsn: str, tmp_path: Path, proves: Proves
) -> None:
    with pgqrs.connect(postgres_dsn) as store, Host(1) as host, Proxy(postgres_dsn, host.address) as cable:
        store.install()
        run = store.trigger(pipeline.three_steps, str(tmp_path / "e"), 30.0)
        with (
            Supervised(
                cable.dsn, tmp_path / "log", *OPTIONS, target=THREE_STEPS, within=host.within
            ) as there,
        ):
            eventually(lambda: starts(tmp_path / "e")[1:], what=there.said)
            with Supervised(postgres_dsn, tmp_path / "log2", *OPTIONS, target=THREE_STEPS) as here:
                eventually(lambda: len({c.host for c in store.consumers()}) == 2)
                # Some way into its lease, so that the second in which the other looks is within the bound too.
                eventually(lambda: lease_left_s(postgres_dsn, host.name) < LEASE_S - 0.3)
                killed_at = kill(there.pid)
                there.wait()
                assert run.result(LEASE_S + 5) == ONCE
                assert "took back 1 message of" in here.said()
        again = [s for s in starts(tmp_path / "e") if s.step == "slow"][1]
        assert [s.step for s in starts(tmp_path / "e")] == TWICE
        assert (run.record().attempt, run.record().crash_count) == (2, 0)
    proves(
        "a supervisor is killed, or its host dies, while others run on other hosts",
        "one of them takes over within a second after the lease ends",
        charged="nobody; a plain message's delivery counts if its handler had begun",
        seconds=again.at - killed_at,
        within=LEASE_S + 1,
    )


def lease_left_s(dsn: str, host: str) -> float:
    with psycopg.connect(dsn) as connection:
        [left] = connection.execute(
            "select extract(epoch from lease_until - clock_timestamp()) from pgqrs_supervisors where host = %s",
            (host,),
        )
    return float(left[0])


def test_a_host_that_is_cut_off_for_longer_than_the_lease_stops_and_joins_anew(
    postgres_dsn: str, tmp_path: Path, proves: Proves
) -> None:
    with (
        pgqrs.connect(postgres_dsn) as store,
        Host(1) as host,
        Host(2) as other_host,
        Proxy(postgres_dsn, host.address) as cable,
        Proxy(postgres_dsn, other_host.address) as other_cable,
    ):
        store.install()
        run = store.trigger(pipeline.three_steps, str(tmp_path / "e"), 30.0)
        with (
            Supervised(
                cable.dsn, tmp_path / "log", *OPTIONS, target=THREE_STEPS, within=host.within
            ) as cut_off,
        ):
            body = eventually(lambda: starts(tmp_path / "e")[1:], what=cut_off.said)[0]
            with (
                Supervised(
                    other_cable.dsn, tmp_path / "2", *OPTIONS, target=THREE_STEPS, within=other_host.within
                ),
                Supervised(postgres_dsn, tmp_path / "3", *OPTIONS, target=THREE_STEPS),
            ):
                eventually(lambda: len({c.host for c in store.consumers()}) == 3)
                host.pull_the_plug()
                began = time.monotonic()
                eventually(lambda: not alive(body.pid), timeout=LEASE_S + 2, what=cut_off.said)
                stopped_s = time.monotonic() - began
                assert run.result(LEASE_S + 5) == ONCE
                recorded = [(s.step_name, s.pid, s.completed_at) for s in run.steps()]
                host.plug_in()
                eventually(lambda: any(c.host == host.name for c in store.consumers()), what=cut_off.said)
            # The others have drained and gone: what comes now is its own.
            assert store.trigger(pipeline.three_steps, str(tmp_path / "e2"), 0.0).result(20) == ONCE
            assert starts(tmp_path / "e2")[0].pid in cut_off.workers()
            assert [(s.step_name, s.pid, s.completed_at) for s in run.steps()] == recorded
            assert "Traceback" not in cut_off.said(), cut_off.said()
        assert [s.step for s in starts(tmp_path / "e")] == TWICE
        assert (run.record().attempt, run.record().crash_count) == (2, 0)
    proves(
        "one host of three is cut off from the database for longer than the lease (its cable is pulled)",
        "its executing runs are killed before the lease ends, and another host finishes them; when the cable is back the supervisor registers again",
        charged="nobody",
        seconds=stopped_s,
        within=LEASE_S,
    )
