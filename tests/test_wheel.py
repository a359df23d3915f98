"""What a user installs: both packages with their types and SQL, nothing else, working outside the checkout."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> str:
    # Neither the checkout nor this environment may lend its packages.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    said = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=100
    )
    assert said.returncode == 0, said.stdout + said.stderr
    return said.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", target, ROOT, cwd=target)
    (built,) = target.glob("*.whl")
    return built


def test_it_holds_both_packages_with_every_source_sql_and_type_marker(wheel):
    sources = {
        str(path.relative_to(ROOT))
        for package in ("pgqrs", "supervisors")
        for path in (ROOT / package).rglob("*")
        if path.suffix in (".py", ".sql") or path.name == "py.typed"
    }
    assert {
        "pgqrs/__init__.py",
        "pgqrs/py.typed",
        "supervisors/__init__.py",
        "supervisors/py.typed",
    } <= sources
    assert sources <= set(zipfile.ZipFile(wheel).namelist())


def test_it_holds_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"pgqrs", "supervisors"}
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_installed_it_works_far_from_the_checkout(wheel, tmp_path):
    run(sys.executable, "-m", "venv", "--without-pip", "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    packages = Path(
        run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip()
    )
    install(wheel, python, tmp_path)
    # Dependencies are those of this environment: its folder goes on the path, its .pth files, one of which points to the
    # checkout, do not count there.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))

    empty = tmp_path / "empty"
    empty.mkdir()
    where = run(
        python, "-c", "import pgqrs, supervisors; print(pgqrs.__file__, supervisors.__file__)", cwd=empty
    )
    assert all(Path(path).is_relative_to(packages) for path in where.split())
    assert "1.0.0" in run(tmp_path / "venv" / "bin" / "pgqrs", "--version", cwd=empty)


def install(wheel: Path, python: Path, cwd: Path) -> None:
    """Without dependencies, and by the pip of whichever environment has one: a venv made by uv has none."""
    base = Path(sys.base_prefix) / "bin" / "python3"
    pip = next(
        candidate
        for candidate in (sys.executable, str(base))
        if subprocess.run([candidate, "-m", "pip", "--version"], capture_output=True).returncode == 0
    )
    run(pip, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=cwd)
