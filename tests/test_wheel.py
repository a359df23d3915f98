"""What a user installs: both packages with their types and SQL, nothing else, working outside the checkout."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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
        if path.suffix in (".py", ".pyi", ".sql") or path.name == "py.typed"
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


def test_installed_without_extras_it_runs_on_sqlite_and_names_the_extra_that_a_dsn_needs(wheel, tmp_path):
    """Of this environment's packages it gets those that a plain `pip install` brings, and no others."""
    run(sys.executable, "-m", "venv", "--without-pip", "venv", cwd=tmp_path)
    python, pgqrs = tmp_path / "venv" / "bin" / "python", tmp_path / "venv" / "bin" / "pgqrs"
    packages = Path(
        run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip()
    )
    install(wheel, python, tmp_path)
    brought = plain_requirements("pgqrs")
    assert {"msgspec", "psycopg"} <= brought
    assert not {"pyturso", "obstore", "pydantic", "pyyaml"} & brought
    for name in brought:
        lend(name, packages)

    program = "import pgqrs\nwith pgqrs.connect('sqlite://q.db') as s: print(s.enqueue('q', 1), [q.ready for q in s.queues()])"
    assert run(python, "-c", program, cwd=tmp_path) == "1 [1]\n"
    assert "1 runs" in run(pgqrs, "demo", "--limit", "1", "--workers", "1", cwd=tmp_path)
    for dsn, extra in ("turso://q.turso", "pgqrs[turso]"), ("s3://bucket/key", "pgqrs[s3]"):
        ended = subprocess.run(
            [pgqrs, "install", "--dsn", dsn], cwd=tmp_path, capture_output=True, text=True, timeout=30
        )
        assert (ended.returncode, ended.stdout) == (2, "")
        assert f"pip install '{extra}'" in ended.stderr
        assert "Traceback" not in ended.stderr


def plain_requirements(name: str, extras: Iterable[str] = ()) -> set[str]:
    """The distributions that installing this one brings, itself left out."""
    found: set[str] = set()
    for text in importlib.metadata.requires(name) or []:
        requirement = Requirement(text)
        applies = requirement.marker is None or any(
            requirement.marker.evaluate({"extra": e}) for e in ("", *extras)
        )
        if applies:
            found |= {canonicalize_name(requirement.name)}
            found |= plain_requirements(requirement.name, requirement.extras)
    return found


def lend(name: str, packages: Path) -> None:
    for file in importlib.metadata.files(name) or []:
        if ".." not in file.parts:
            target = packages / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file.locate(), target)


def install(wheel: Path, python: Path, cwd: Path) -> None:
    """Without dependencies, and by the pip of whichever environment has one: a venv made by uv has none."""
    base = Path(sys.base_prefix) / "bin" / "python3"
    pip = next(
        candidate
        for candidate in (sys.executable, str(base))
        if subprocess.run([candidate, "-m", "pip", "--version"], capture_output=True).returncode == 0
    )
    run(pip, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=cwd)
