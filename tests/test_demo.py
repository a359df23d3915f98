"""`pgqrs demo` says which database it works on, in its help as in its first line."""

import os
import subprocess

import pytest
from click.testing import CliRunner

from pgqrs.cli.commands import cli
from tests.cli_runner import COMMAND


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
    assert "[default: $PGQRS_DSN, else ./pgqrs.db]" in CliRunner().invoke(cli, ["install", "--help"]).output


@pytest.mark.slow
def test_it_says_what_it_uses_and_what_it_ignores(sqlite_dsn):
    temporary = "database: a temporary SQLite file, removed at the end"
    assert demo()[0] == temporary
    ignored = demo(PGQRS_DSN="postgresql://me:sesame@localhost:1/db")[0]
    assert ignored == f"{temporary}; PGQRS_DSN is ignored: name a database with --dsn"
    assert demo("--dsn", sqlite_dsn, PGQRS_DSN="sqlite://other.db")[0] == f"database: {sqlite_dsn}"
