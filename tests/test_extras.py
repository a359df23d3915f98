"""`pip install pgqrs` alone is enough, until a DSN asks for more: then it says what."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# As if they were not installed: an import of what is None in sys.modules fails.
WITHOUT = "import sys; sys.modules['turso'] = sys.modules['obstore'] = None; "


def python(program):
    return subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_neither_is_imported_before_it_is_needed():
    told = python(
        "import sys, pgqrs, pgqrs.cli, supervisors.loop.loop, pgqrs.store.sqlite; print([m for m in ('turso', 'obstore') if m in sys.modules])"
    )
    assert told.stdout == "[]\n", told.stderr


@pytest.mark.parametrize(
    "address,extra", [("turso://x.db", "pgqrs[turso]"), ("s3://bucket/key", "pgqrs[s3]")]
)
def test_a_dsn_that_takes_an_extra_says_which(address, extra):
    told = python(WITHOUT + f"import pgqrs; pgqrs.connect({address!r}).open()")
    assert f"ConfigError: an {address[:5]}" in told.stderr or f"ConfigError: a {address[:5]}" in told.stderr
    assert f"pip install '{extra}'" in told.stderr
    told = python(
        WITHOUT + f"from pgqrs.cli import main; sys.argv = ['pgqrs', 'install', '--dsn', {address!r}]; main()"
    )
    assert (told.returncode, told.stdout) == (2, "")
    assert extra in told.stderr
    assert "Traceback" not in told.stderr
    assert not list(ROOT.glob("x.db*"))


def test_sqlite_runs_without_them(tmp_path):
    told = python(
        WITHOUT
        + f"import pgqrs\nwith pgqrs.connect('sqlite://{tmp_path}/x.db') as s: print(s.enqueue('q', 1))"
    )
    assert told.stdout == "1\n", told.stderr
