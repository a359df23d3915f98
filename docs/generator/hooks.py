"""Events of MkDocs: what the site has beside the pages in docs/. See mkdocs.yml."""

import re
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from reference import PARTS

PROJECT = Path(__file__).parents[2]

# Pages of the site that stand beside docs/, where a visitor of the repository looks for them.
PAGES_OUTSIDE = {"CHANGELOG.md": "changelog.md", "UPGRADING.md": "upgrading.md"}

MARKER = re.compile(r"^<!-- made at build: (\w+) -->$", re.M)
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]*)?\)")
MERMAID = re.compile(r"^```mermaid\n.*?^```\n\n?", re.M | re.S)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that stand beside docs/."""
    for outside, inside in PAGES_OUTSIDE.items():
        text = (PROJECT / outside).read_text().replace("](docs/", "](")
        for other, its_page in PAGES_OUTSIDE.items():
            text = text.replace(f"]({other}", f"]({its_page}")
        files.append(File.generated(config, inside, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fills in the parts that are generated from the code, and turns links out of docs/ into links
    to pages of the site.
    """
    markdown = MARKER.sub(lambda found: PARTS[found[1]](), markdown)
    # A diagram needs a script from another host, and the table below it says the same.
    markdown = MERMAID.sub("", markdown)
    return LINK.sub(lambda found: _relinked(found, PurePosixPath(page.file.src_uri)), markdown)


def _relinked(link: re.Match[str], page: PurePosixPath) -> str:
    up = "../" * (len(page.parts) - 1)
    inside = PAGES_OUTSIDE.get(link[1].removeprefix(f"{up}../"))
    if inside is None or not link[1].startswith("../"):
        return link[0]
    return f"]({up}{inside}{link[2] or ''})"
