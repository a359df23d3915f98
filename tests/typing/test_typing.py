"""What type checkers say to code of a user's: nothing where it is right, and something in every line that is wrong."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent.parent
USER_CODE, MISTAKES = FOLDER / "user_code.py", FOLDER / "mistakes.py"

Checker = Callable[[Path], set[int]]


def mypy(file: Path) -> set[int]:
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--no-incremental",
        "--follow-imports=silent",
        str(file),
    ]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert told.returncode in (0, 1), told.stdout + told.stderr
    return {int(n) for n in re.findall(rf"^tests/typing/{file.name}:(\d+): error", told.stdout, re.M)}


def pyright(file: Path) -> set[int]:
    # basedpyright is pyright as a wheel that needs no Node.js; its own additional rules are off in the mode "strict".
    settings = ROOT / ".pytest_cache" / "pyright" / file.stem / "pyrightconfig.json"
    settings.parent.mkdir(parents=True, exist_ok=True)
    wanted = {"include": [str(file)], "typeCheckingMode": "strict", "extraPaths": [str(ROOT)]}
    settings.write_text(json.dumps(wanted))
    command = [sys.executable, "-m", "basedpyright", "-p", str(settings), "--pythonpath", sys.executable]
    told = subprocess.run([*command, "--outputjson"], cwd=ROOT, capture_output=True, text=True)
    found = json.loads(told.stdout)
    assert found["summary"]["filesAnalyzed"] >= 1, told.stdout + told.stderr
    return {d["range"]["start"]["line"] + 1 for d in found["generalDiagnostics"] if d["severity"] == "error"}


@pytest.mark.parametrize("check", [mypy, pyright])
def test_right_code_is_left_alone(check: Checker) -> None:
    assert check(USER_CODE) == set()


@pytest.mark.parametrize("check", [mypy, pyright])
def test_every_mistake_is_found_and_nothing_else(check: Checker) -> None:
    lines = MISTAKES.read_text().splitlines()
    assert check(MISTAKES) == {n for n, line in enumerate(lines, 1) if "# mistake" in line}
