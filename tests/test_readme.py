"""What the README shows is run: its programs as they stand there, its commands looked up. The other pages: test_docs.py."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PROGRAM = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)
PROGRAMS = PROGRAM.findall(README)
COMMANDS = re.findall(r"^\$ (.*?)(?:\s+#.*)?$", README, flags=re.M)


def run(command: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=100, check=False)


def test_the_readme_opens_with_a_program() -> None:
    assert len(PROGRAMS) == 2
    assert len([line for line in PROGRAMS[0].splitlines() if line.strip()]) <= 20


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS, ids=["first", "more"])
def test_a_program_of_the_readme_runs(program: str, tmp_path: Path) -> None:
    (tmp_path / "pipeline.py").write_text(program)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "page.md").write_text("a page\n" * 100)
    done = run([sys.executable, "pipeline.py"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.slow
def test_the_first_program_is_a_service_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / "pipeline.py").write_text(PROGRAMS[0])
    pgqrs = [sys.executable, "-m", "pgqrs"]
    first = run([*pgqrs, "supervise", "pipeline.py", "--burst"], tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    triggered = run([*pgqrs, "trigger", "archive", '"pipeline.py"'], tmp_path)
    assert triggered.returncode == 0, triggered.stderr
    second = run([*pgqrs, "supervise", "pipeline.py", "--burst"], tmp_path)
    assert "1 finished" in second.stdout, second.stdout + second.stderr
    for command in (["runs"], ["run", triggered.stdout.strip()]):
        shown = run([*pgqrs, *command], tmp_path)
        assert shown.returncode == 0, shown.stderr
        assert "archive" in shown.stdout


def test_every_command_of_the_readme_exists() -> None:
    from pgqrs.cli.commands import COMMANDS as KNOWN

    named = {c.split()[1] for c in COMMANDS if c.startswith("pgqrs ")}
    assert named
    assert named <= set(KNOWN)
