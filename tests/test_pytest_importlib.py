"""Workflows of a test module that pytest imports by its file (`--import-mode=importlib`), where no search finds it."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.programs import write

pytestmark = [pytest.mark.processes, pytest.mark.slow]

TEST = """
import pgqrs
{imports}

FACTOR = 3

@pgqrs.step
def grow(x: int) -> int:
    return x * FACTOR

@pgqrs.workflow
def grown(x: int) -> int:
    return grow(x)

def test_it(tmp_path):
    @pgqrs.workflow
    def nested(x: int) -> int:
        return grow(x) + 1

    with pgqrs.connect(f"sqlite://{{tmp_path}}/x.db") as store, store.workers(grown, nested, processes=1):
        assert store.trigger(grown, 2).result(timeout=20) == 6
        assert store.trigger(nested, 2).result(timeout=20) == 7
"""


@pytest.mark.parametrize("where", ["test_flows.py", "deep/er/test_flows.py", "packaged/test_flows.py"])
def test_functions_of_a_test_module_are_found_by_workers(tmp_path: Path, where: str) -> None:
    if where.startswith("packaged"):
        write(tmp_path, "packaged/__init__.py", "")
        write(tmp_path, "packaged/given.py", "FOUR = 4")
    imports = "from .given import FOUR" if where.startswith("packaged") else ""
    write(tmp_path, where, TEST.format(imports=imports))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--import-mode=importlib",
        "--rootdir=.",
    ]
    done = subprocess.run(
        [*command, where], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
