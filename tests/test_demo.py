"""`pgqrs demo` says which database it works on, in its help as in its first line."""

import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from pgqrs.cli.commands import cli
from pgqrs.cli.demo import KILLS_OF_A_STEP, DemoView
from pgqrs.demo.proof import starts_in
from supervisors.loop.view import State, WorkerState
from tests.cli_runner import COMMAND
from tests.crashes.chaos import Told


def demo(*options, **environment):
    ended = subprocess.run(
        [*COMMAND, "demo", "--limit", "1", "--workers", "1", *options],
        env={k: v for k, v in os.environ.items() if k != "PGQRS_DSN"} | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return ended.stdout.splitlines()


def test_help_does_not_promise_the_default_of_the_other_commands():
    told = " ".join(CliRunner().invoke(cli, ["demo", "--help"]).output.split())
    assert "[default: a temporary SQLite file, whatever $PGQRS_DSN is]" in told
    assert "./pgqrs.db" not in told
    assert (
        "[default: $PGQRS_DSN, else as in pgqrs.toml, else"
        in CliRunner().invoke(cli, ["install", "--help"]).output
    )


@pytest.mark.parametrize("torn", ["", "1", "1 par", "1 parse 99"])
def test_the_proof_reads_past_what_a_kill_left_of_a_line(torn):
    evidence = f"\n1 scan 98 1.5\n\n{torn}\n1 parse 100 2.5\n\n2 scan 101 3.5\n"
    assert starts_in(evidence) == {1: ["scan", "parse"], 2: ["scan"]}


def test_the_chaos_run_counts_steps_taken_back_and_lines_torn():
    evidence = "\n7 1 98 1.5\n\n7 2 98 2.5\n\n8 1 99 2.6\n\n7 2 9\n7 1 99 3.5\n\n7 2 99 4.5\n"
    assert Told.by(evidence) == Told(starts=5, repeated=1, torn=1)


@pytest.mark.slow
def test_it_says_what_it_uses_and_what_it_ignores(sqlite_dsn):
    temporary = "database: a temporary SQLite file, removed at the end"
    assert demo()[0] == temporary
    ignored = demo(PGQRS_DSN="postgresql://me:sesame@localhost:1/db")[0]
    assert ignored == f"{temporary}; PGQRS_DSN is ignored: name a database with --dsn"
    assert demo("--dsn", sqlite_dsn, PGQRS_DSN="sqlite://other.db")[0] == f"database: {sqlite_dsn}"


def test_chaos_kills_a_worker_in_one_step_so_often_and_no_more(monkeypatch):
    """Five times would end the run, as it should: on a slow machine nothing but that would happen."""
    now = 100.0
    monkeypatch.setattr("pgqrs.cli.demo.time.monotonic", lambda: now)
    view = DemoView(total=1, chaos=True)

    def ends_somebody(step):
        nonlocal now
        now += 1.0
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as worker:
            busy = WorkerState(1, worker.pid, "busy", 1, run=7, function="measured", step=step)
            view.state(State((busy,), 0, 0, 0, 1, 0, None, None))
            worker.stdin.close()
            return worker.wait() < 0

    assert [ends_somebody("measure") for _ in range(KILLS_OF_A_STEP + 1)] == [True] * KILLS_OF_A_STEP + [
        False
    ]
    assert ends_somebody("measure#2")
    assert view.kills == KILLS_OF_A_STEP + 1
