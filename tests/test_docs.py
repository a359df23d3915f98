"""The documentation: its programs run, its links lead somewhere, and its reference leaves nothing out."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import pgqrs
from pgqrs.cli.commands import COMMANDS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
ALL_PAGES = [*sorted(ROOT.glob("*.md")), *PAGES]

FENCE = re.compile(r"^```.*?^```$", re.M | re.S)
PYTHON = re.compile(r"^```python(?P<options>[^\n]*)\n(?P<program>.*?)^```$", re.M | re.S)
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)")
HEADING = re.compile(r"^#+ (.+?)(?: \{ ?#([\w.-]+) ?\})?$", re.M)
# Pages of the site that are made of files beside docs/ (docs/generator/hooks.py).
SLOW = {"tutorial.md"}


def programs(page: Path) -> list[tuple[str, str]]:
    """The programs of a page that can be run, each with the file that it is saved as."""
    return [
        (
            title[1] if (title := re.search(r'title="(.+?)"', found["options"])) else "program.py",
            found["program"],
        )
        for found in PYTHON.finditer(page.read_text())
        if "no-run" not in found["options"]
    ]


RUNNABLE = [page for page in PAGES if programs(page)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=str(page.relative_to(DOCS)), marks=[pytest.mark.slow] * (page.name in SLOW))
        for page in RUNNABLE
    ],
)
def test_the_programs_of_a_page_run(page: Path, tmp_path: Path) -> None:
    """In one folder, in the order of the page, with a few texts to work on."""
    (tmp_path / "texts").mkdir()
    for n in range(1, 4):
        (tmp_path / "texts" / f"{n}.txt").write_text("some words to count\n" * n)
    for file, program in programs(page):
        (tmp_path / file).write_text(program)
        done = subprocess.run(
            [sys.executable, file], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"{file}: {done.stderr}"
        assert done.stdout.strip(), file


def test_a_program_that_is_not_run_is_python_all_the_same() -> None:
    for page in PAGES:
        for found in PYTHON.finditer(page.read_text()):
            compile(found["program"], f"{page.name}", "exec")


# Links


def anchors(page: Path) -> set[str]:
    """Where a link can lead within a page, as MkDocs and the hosts of repositories make it of the headings."""
    text = FENCE.sub("", page.read_text())
    return {given or slug(title) for title, given in HEADING.findall(text)}


def slug(title: str) -> str:
    plain = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", title)
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())


def broken_links(page: Path) -> list[str]:
    broken = []
    for link, anchor in LINK.findall(FENCE.sub("", page.read_text())):
        if "://" in link:
            continue
        target = page.parent / link if link else page
        made_at_build = anchor.startswith("pgqrs") or "made at build" in text_of(target)
        if not target.exists() or (anchor and not made_at_build and anchor not in anchors(target)):
            broken.append(f"{page.relative_to(ROOT)}: {link}#{anchor}")
    return broken


def text_of(page: Path) -> str:
    return page.read_text() if page.suffix == ".md" and page.is_file() else ""


def test_every_link_leads_somewhere() -> None:
    assert [link for page in ALL_PAGES if page.is_relative_to(ROOT) for link in broken_links(page)] == []


def test_a_broken_link_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "there.md").write_text("# There\n\n## Two words, and `code`\n")
    page = tmp_path / "page.md"
    page.write_text("[a](there.md) [b](there.md#two-words-and-code) [c](https://example.com/x)")
    assert broken_links(page) == []
    page.write_text("[a](gone.md) [b](there.md#gone) [c](#gone)")
    assert broken_links(page) == ["page.md: gone.md#", "page.md: there.md#gone", "page.md: #gone"]


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in PAGES:
        assert f" {page.relative_to(DOCS)}\n" in navigation


def test_every_decision_is_in_the_list() -> None:
    listed = (DOCS / "decisions" / "index.md").read_text()
    for page in sorted((DOCS / "decisions").glob("0*.md")):
        title = page.read_text().partition("\n")[0].removeprefix("# ").partition(". ")[2]
        assert f"[{title}]({page.name})" in listed


# The reference

# A name of the package that stands for another place.
SHOWN_AS = {"BlockingStore": "clients.blocking.Store"}


def test_every_public_name_is_in_the_reference_and_no_other() -> None:
    shown = set(re.findall(r"^::: pgqrs\.([\w.]+)$", (DOCS / "reference" / "python.md").read_text(), re.M))
    of_package = {name.removeprefix("errors.") for name in shown}
    assert {SHOWN_AS.get(name, name) for name in pgqrs.__all__} <= of_package
    assert of_package - set(pgqrs.__all__) == {
        "clients.blocking.Store",
        "clients.handle.RunHandle",
        "clients.jobs.Job",
        "clients.using.Using",
    }


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch):
    """The generator's module, which MkDocs imports by its own name."""
    monkeypatch.syspath_prepend(str(DOCS / "generator"))
    import reference

    return reference


def test_the_parts_made_at_build_are_complete(reference) -> None:
    assert set(re.findall(r"^## pgqrs (\w+)", reference.commands(), re.M)) == set(COMMANDS)
    for name in [name for name in pgqrs.__all__ if name.endswith("Error")]:
        assert f"`{name}`" in reference.errors()
    assert "| `max_read_ct` | `PGQRS_MAX_READ_CT` | `5` |" in reference.settings()


def test_each_part_made_at_build_has_its_page(reference) -> None:
    marked = [
        m for page in PAGES for m in re.findall(r"^<!-- made at build: (\w+) -->$", page.read_text(), re.M)
    ]
    assert sorted(marked) == sorted(reference.PARTS)
