"""python3 dev.py run guarantees [RESULTS]: runs the fault tests and rewrites the table of
docs/guarantees.md from what they prove.

With RESULTS, a file that an earlier run wrote (PGQRS_TEST_GUARANTEES=FILE pytest tests/crashes), no
test is run. If a test fails or proves nothing, the table stays unchanged.
"""

import argparse
import ast
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from tests.crashes.conftest import RESULTS, Proof
from tests.marked_page import with_part

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "guarantees.md"
BEGIN, END = "<!-- made by `dev.py run guarantees` -->", "<!-- to here -->"
COMMAND = "python3 dev.py run guarantees"
HEAD = "| failure | what happens | charged | measured | test |\n|---|---|---|---|---|\n"
# Modules in the order of the page. Modules that are missing here come last.
ORDER = (
    "test_worker_deaths", "test_waiting", "test_limits", "test_run_timeout", "test_oom", "test_many_processes", "test_frames", "test_supervisor_deaths", "test_hosts", "test_network",
    "test_connections", "test_database_away", "test_failover", "test_local_supervisor",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="dev.py run guarantees",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("results", nargs="?", type=Path)
    results = parser.parse_args().results
    with tempfile.TemporaryDirectory() as folder:
        if results is None:
            results = Path(folder) / "results"
            done = subprocess.run(
                [sys.executable, "-m", "pytest", "-q", "-n", "2", str(HERE)],
                env={**os.environ, RESULTS: str(results)},
                cwd=HERE.parents[1],
                check=False,
            )
            if done.returncode:
                return done.returncode
        proofs = read(results)
    claimed = {claim.test for claim in claims()}
    if missing := sorted(claimed - {proof.test for proof in proofs}):
        print("These proved nothing (were they skipped?):", *missing, sep="\n  ", file=sys.stderr)
        return 1
    PAGE.write_text(rewritten(PAGE.read_text(), where_and_when() + table(proofs)))
    print(f"{len(claimed)} rows in {PAGE}")
    return 0


def read(results: Path) -> list[Proof]:
    return [msgspec.json.decode(line, type=Proof) for line in results.read_bytes().splitlines()]


def claims() -> list[Proof]:
    """Returns what the tests say that they prove, from their source, in the order of the page."""
    found = []
    modules = sorted(
        HERE.glob("test_*.py"), key=lambda p: (ORDER.index(p.stem) if p.stem in ORDER else 99, p.stem)
    )
    for module in modules:
        for function in ast.parse(module.read_text()).body:
            if isinstance(function, ast.FunctionDef) and any(a.arg == "proves" for a in function.args.args):
                found += [
                    _claim(f"{module.stem}::{function.name}", call)
                    for call in ast.walk(function)
                    if isinstance(call, ast.Call)
                    and isinstance(call.func, ast.Name)
                    and call.func.id == "proves"
                ]
    return found


def _claim(test: str, call: ast.Call) -> Proof:
    texts = [ast.literal_eval(argument) for argument in call.args]
    charged = [ast.literal_eval(k.value) for k in call.keywords if k.arg == "charged"]
    return Proof(test, *texts, *charged)


def table(proofs: Sequence[Proof]) -> str:
    return HEAD + "".join(f"{_row(claim, proofs)}\n" for claim in claims())


def _row(claim: Proof, proofs: Sequence[Proof]) -> str:
    """Shows the longest time that this test measured, whatever its parameters."""
    measured = [p for p in proofs if p.test == claim.test and p.seconds is not None]
    worst = max(measured, key=lambda p: p.seconds or 0.0, default=None)
    told = f"{_time(worst.seconds)} of {_time(worst.within)} allowed" if worst else ""
    return f"| {claim.failure} | {claim.happens} | {claim.charged} | {told} | `{claim.test}` |"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds * 1000:.0f} ms" if seconds < 0.9995 else f"{seconds:.1f} s"


def rows(page: str) -> dict[str, tuple[str, str, str]]:
    """Returns (failure, what happens, charged) for each test that the page's table names."""
    made = page.partition(BEGIN)[2].partition(END)[0]
    cells = [
        [cell.strip() for cell in line.strip("| ").split("|")] for line in made.splitlines() if "::" in line
    ]
    return {c[-1].strip("`"): (c[0], c[1], c[2]) for c in cells}


def rewritten(page: str, made: str) -> str:
    return with_part(page, BEGIN, END, made)


def where_and_when() -> str:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE, check=True
    ).stdout.strip()
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    machine = f"{os.cpu_count()} cores, {memory_gb:.0f} GB, {_system()}, Python {platform.python_version()}"
    return f"{machine}, {time.strftime('%Y-%m-%d', time.gmtime())}, commit {commit}: `{COMMAND}`.\n\n"


def _system() -> str:
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return platform.system()
    return f"{release['NAME'].removesuffix(' GNU/Linux')} {release.get('VERSION_ID', '')}".strip()


if __name__ == "__main__":
    sys.exit(main())
