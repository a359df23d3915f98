"""`dev.py run stale-writer` shows what docs/guarantees.md says that it shows."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PROJECT = Path(__file__).parents[2]


def test_no_late_write_goes_through_and_the_page_has_what_is_printed(python_0_15: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.crashes.stale_writer"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    theirs, ours = done.stdout.split("\nthis pgqrs:\n")
    assert theirs.count("a late write") == ours.count("a late write") == 3
    assert ours.count("REFUSED") == 3
    assert "finds of its own run: step 'without a result', run 'without a result'" in ours
    page = (PROJECT / "docs" / "guarantees.md").read_text()
    assert f"```\n{done.stdout}```\n" in page, f"put this there:\n{done.stdout}"
