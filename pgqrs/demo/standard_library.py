"""The demo's workflow: measure and compress one module or package of the Python standard library.

Change this file and run `pgqrs demo` again, or run it as a service:

    pgqrs supervise pgqrs/demo/standard_library.py

Every step is an ordinary function whose result is recorded once. If you kill its process at any
moment, the run continues after the last recorded step.
"""

import ast
import lzma
import os
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path

import pgqrs

# Source per step. Parsing or compressing it takes a few hundredths of a second.
CHUNK_BYTES = 32 * 1024


@dataclass
class Source:
    """A source file of the module, or a part of one."""

    path: Path
    bytes: int
    start: int = 0


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
    """Measures a module. `root` is its file or folder. With `evidence`, each step's body logs its
    start in that file.
    """
    sources = list_files(root, evidence)
    total = Metrics()
    for group in chunks(sources):
        found = measure(group, evidence)
        total.lines += found.lines
        total.functions += found.functions
        total.branches += found.branches
        total.identifiers += found.identifiers
    compressed = sum(compress(group, evidence) for group in chunks(parts(sources)))
    return summarise(module, sources, total, compressed, evidence)


def chunks(sources: list[Source]) -> list[list[Source]]:
    """Groups the sources. Each group is the work of one step."""
    groups: list[list[Source]] = []
    size = 0
    for source in sources:
        if not groups or size + source.bytes > CHUNK_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(source)
        size += source.bytes
    return groups


def parts(sources: list[Source]) -> list[Source]:
    """Splits large files into parts for compression. (Files to be parsed must stay whole.)"""
    return [
        Source(source.path, min(CHUNK_BYTES, source.bytes - start), start)
        for source in sources
        for start in range(0, source.bytes, CHUNK_BYTES)
    ]


@pgqrs.step
def list_files(root: Path, evidence: Path | None) -> list[Source]:
    witness(evidence)
    files = [root] if root.is_file() else sorted(root.rglob("*.py"))
    return [Source(f, f.stat().st_size) for f in files if not {"__pycache__", "site-packages"} & set(f.parts)]


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
            continue  # the library contains a few invalid files on purpose
        names: set[str] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                total.functions += 1
            elif isinstance(node, BRANCHES):
                total.branches += 1
            elif isinstance(node, ast.BoolOp):
                total.branches += len(node.values) - 1
            for field in NAMES:
                if isinstance(name := getattr(node, field, None), str):
                    names.add(name)
        total.identifiers += len(names)
    return total


NAMES = ("id", "attr", "arg", "name", "asname")
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
    """Returns the size of the group after compression with lzma at its highest setting."""
    witness(evidence)
    size = 0
    for part in group:
        with part.path.open("rb") as file:
            file.seek(part.start)
            size += len(lzma.compress(file.read(part.bytes), filters=LZMA, format=lzma.FORMAT_XZ))
    return size


LZMA = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 256 * 1024}]


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
    """Returns the top-level modules and packages of the standard library. The largest come first,
    so that no large one remains when the others have ended.
    """
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
    """Logs that this step of this run has started. pgqrs does not know this log.

    A write to a file that is opened for appending does not mix with the write of another process,
    but a kill may cut it short. So each line begins with a line feed, in case the previous line is
    incomplete.
    """
    if evidence is not None:
        run = pgqrs.current_run()
        line = f"\n{run.id} {run.step} {os.getpid()} {time.time():.6f}\n"
        fd = os.open(evidence, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(fd, line.encode())
        finally:
            os.close(fd)
