"""The demo's workflow: measure and compress one module or package of the Python standard library.

Change it and run `pgqrs demo` again, or run it as a service of its own:

    pgqrs supervise pgqrs/demo/standard_library.py

Every step is an ordinary function. What it returns is recorded once; kill its process at any moment, and the run goes on
behind the last step that was recorded.
"""

import ast
import io
import keyword
import lzma
import os
import sysconfig
import time
import tokenize
from dataclasses import dataclass
from pathlib import Path

import pgqrs

CHUNK_BYTES = 64 * 1024  # of source in one step: a few hundredths of a second to parse or to compress


@dataclass
class Source:
    """A file of the module."""

    path: Path
    bytes: int


@dataclass
class Metrics:
    lines: int = 0
    functions: int = 0
    branches: int = 0
    identifiers: int = 0


@dataclass
class Summary:
    module: str
    files: int
    lines: int
    functions: int
    complexity: float  # cyclomatic, per function
    identifiers: int
    bytes: int
    compressed_bytes: int


@pgqrs.workflow
def analyse_module(module: str, root: Path, evidence: Path | None = None) -> Summary:
    """`root` is the file or folder of the module; with `evidence`, each step's body notes its start in that file."""
    groups = list_files(root, evidence)
    total = Metrics()
    for group in groups:
        found = measure(group, evidence)
        total.lines += found.lines
        total.functions += found.functions
        total.branches += found.branches
        total.identifiers += found.identifiers
    compressed = sum(compress(group, evidence) for group in groups)
    sources = [source for group in groups for source in group]
    return summarise(module, sources, total, compressed, evidence)


@pgqrs.step
def list_files(root: Path, evidence: Path | None) -> list[list[Source]]:
    """The module's files, grouped so that each group is a step's worth of work."""
    witness(evidence)
    files = [root] if root.is_file() else sorted(root.rglob("*.py"))
    groups: list[list[Source]] = []
    size = 0
    for file in files:
        if "__pycache__" in file.parts or "site-packages" in file.parts:
            continue
        source = Source(file, file.stat().st_size)
        if not groups or size + source.bytes > CHUNK_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(source)
        size += source.bytes
    return groups


@pgqrs.step
def measure(group: list[Source], evidence: Path | None) -> Metrics:
    witness(evidence)
    total = Metrics()
    for source in group:
        text = source.path.read_text(encoding="utf-8", errors="replace")
        total.lines += text.count("\n")
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError):
            continue  # the library holds a few files that are wrong on purpose
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                total.functions += 1
            elif isinstance(node, BRANCHES):
                total.branches += 1
            elif isinstance(node, ast.BoolOp):
                total.branches += len(node.values) - 1
        total.identifiers += len(identifiers(text))
    return total


def identifiers(text: str) -> set[str]:
    """Every name in the source, those in definitions and attributes too, as the tokenizer sees them."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    try:
        return {t.string for t in tokens if t.type == tokenize.NAME and not keyword.iskeyword(t.string)}
    except (tokenize.TokenError, SyntaxError):
        return set()


BRANCHES = (
    ast.If,
    ast.For,
    ast.AsyncFor,
    ast.While,
    ast.ExceptHandler,
    ast.IfExp,
    ast.comprehension,
    ast.match_case,
)


@pgqrs.step
def compress(group: list[Source], evidence: Path | None) -> int:
    """How many bytes the group's files take with lzma, which tries hard."""
    witness(evidence)
    return sum(
        len(lzma.compress(source.path.read_bytes(), preset=2 | lzma.PRESET_EXTREME)) for source in group
    )


@pgqrs.step
def summarise(
    module: str, sources: list[Source], total: Metrics, compressed_bytes: int, evidence: Path | None
) -> Summary:
    witness(evidence)
    return Summary(
        module=module,
        files=len(sources),
        lines=total.lines,
        functions=total.functions,
        complexity=round(1 + total.branches / max(1, total.functions), 2),
        identifiers=total.identifiers,
        bytes=sum(source.bytes for source in sources),
        compressed_bytes=compressed_bytes,
    )


def modules() -> list[tuple[str, Path]]:
    """The top-level modules and packages of the standard library, largest first so that none is left for the end."""
    library = Path(sysconfig.get_path("stdlib"))
    found = [
        (entry.stem, entry)
        for entry in library.iterdir()
        if entry.name not in SKIPPED
        and not entry.name.startswith(("__", "."))
        and (entry.suffix == ".py" or (entry / "__init__.py").is_file())
    ]
    return sorted(found, key=lambda m: (-_bytes(m[1]), m[0]))


SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idlelib", "turtledemo", "ensurepip", "lib2to3"}


def _bytes(path: Path) -> int:
    return path.stat().st_size if path.is_file() else sum(f.stat().st_size for f in path.rglob("*.py"))


def witness(evidence: Path | None) -> None:
    """A line of the body's own, outside the engine: this step of this run started here and now. One small write to a
    file opened for appending is not torn and not mixed with another process's."""
    if evidence is not None:
        run = pgqrs.current_run()
        line = f"{run.id} {run.step} {os.getpid()} {time.time():.6f}\n"
        fd = os.open(evidence, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(fd, line.encode())
        finally:
            os.close(fd)
