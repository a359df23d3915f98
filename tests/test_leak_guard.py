"""A test run that leaves processes behind fails, and names them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent


def run_suite(tmp_path: Path, test: str) -> subprocess.CompletedProcess:
    (tmp_path / "test_planted.py").write_text(test)
    return subprocess.run(
        [
            sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider",
            "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(tmp_path), str(tmp_path),
        ],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip


def end(pid_file: Path) -> None:
    os.kill(int(pid_file.read_text()), signal.SIGKILL)


def test_a_child_left_behind_fails_the_run(tmp_path):
    run = run_suite(
        tmp_path,
        """
import pathlib, subprocess
kept = []
def test_it():
    kept.append(subprocess.Popen(["sleep", "61.25"]))
    pathlib.Path(__file__).with_name("pid").write_text(str(kept[0].pid))
""",
    )
    end(tmp_path / "pid")
    assert run.returncode == 1, run.stdout
    assert "sleep 61.25" in run.stdout


def test_an_orphan_left_behind_fails_the_run(tmp_path):
    run = run_suite(
        tmp_path,
        """
import pathlib, subprocess
def test_it():
    pid_file = pathlib.Path(__file__).with_name("pid")
    subprocess.run(f"sleep 62.25 >/dev/null 2>&1 & echo $! > {pid_file}", shell=True)
""",
    )
    end(tmp_path / "pid")
    assert run.returncode == 1, run.stdout
    assert "sleep 62.25" in run.stdout


def test_a_tidy_run_passes(tmp_path):
    run = run_suite(
        tmp_path,
        """
import subprocess
def test_it(postgres_dsn):
    subprocess.run(["true"])
""",
    )
    assert run.returncode == 0, run.stdout
