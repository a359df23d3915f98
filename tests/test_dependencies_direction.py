"""Which way the arrows point: who may import whom, who may fork, speak SQL or read a clock.

Read from the source with ast, so that it holds for code that no test runs. Each rule is a function from a tree of sources
to sentences about what breaks it, and each is shown a planted violation below.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("pgqrs", "supervisors")

# Modules that never know the store: what they record goes through a Journal or a command.
STRANGERS_TO_THE_STORE = (
    "supervisors.core.core",
    "supervisors.core.session",
    "supervisors.worker.worker",
    "supervisors.worker.async_worker",
    "pgqrs.flows.flow",
)

# In supervisors, who may read a clock. Every other module is told the time.
CLOCK_READERS = (
    "supervisors.loop.loop",
    "supervisors.loop.pipes",
    "supervisors.worker.journal",
    "supervisors.worker.output",
)
CLOCKS = re.compile(
    r"time\.(time|monotonic|perf_counter)(_ns)?|datetime\.datetime\.(now|utcnow|today)|datetime\.date\.today"
)

# What would make the core impure.
WORLD = {
    "asyncio", "os", "random", "secrets", "select", "selectors", "socket", "subprocess", "threading", "time",
}  # fmt: skip

# At the start of a statement, so that prose about updates and selections passes.
SQL = re.compile(
    r"(?:^|[;(\n])\s*(?:select\s|insert\s+into\b|update\s+[^;]*?\sset\b|delete\s+from\b|create\s+table\b"
    r"|SELECT\s|INSERT\s+INTO\b|UPDATE\s+[^;]*?\sSET\b|DELETE\s+FROM\b|CREATE\s+TABLE\b)"
)


# The rules


def pgqrs_imports_supervisors_late_and_in_few_places(tree: "Tree") -> Iterator[str]:
    for module in tree.of("pgqrs"):
        for imported in module.imports:
            if imported.target.split(".")[0] != "supervisors":
                continue
            if imported.at_top:
                yield f"{module.name}:{imported.line} imports {imported.target} at module level"
            elif module.name != "pgqrs.clients.blocking" and not module.name.startswith("pgqrs.cli."):
                yield f"{module.name}:{imported.line} imports {imported.target}: only pgqrs.cli and pgqrs.clients.blocking may"


def core_worker_and_flow_never_reach_the_store(tree: "Tree") -> Iterator[str]:
    for name in STRANGERS_TO_THE_STORE:
        module = tree.modules.get(name)
        for imported in module.imports if module else ():
            path = tree.path_to_the_store([name, imported.target])
            if path:
                yield f"{name}:{imported.line} reaches the store: {' -> '.join(path)}"


def only_the_nursery_forks(tree: "Tree") -> Iterator[str]:
    for module in tree.modules.values():
        if module.name == "supervisors.births.nursery":
            continue
        for call, line in module.calls:
            if call in ("os.fork", "os.forkpty", "pty.fork", "fork"):
                yield f"{module.name}:{line} calls {call}"


def only_the_store_says_sql(tree: "Tree") -> Iterator[str]:
    for module in tree.modules.values():
        if in_store(module.name):
            continue
        for text, line in module.strings:
            if SQL.search(text):
                yield f"{module.name}:{line} says {text.strip()[:60]!r}"


def few_supervisor_modules_read_a_clock(tree: "Tree") -> Iterator[str]:
    for module in tree.of("supervisors"):
        if module.name in CLOCK_READERS:
            continue
        for call, line in module.calls:
            if CLOCKS.fullmatch(call):
                yield f"{module.name}:{line} calls {call}"


def the_core_is_pure(tree: "Tree") -> Iterator[str]:
    for module in tree.of("supervisors"):
        if module.name.startswith("supervisors.core."):
            for imported in module.imports:
                if imported.target.split(".")[0] in WORLD:
                    yield f"{module.name}:{imported.line} imports {imported.target}"


def no_module_has_the_name_of_something_exported(tree: "Tree") -> Iterator[str]:
    # Importing the module anywhere would replace the function in the package's namespace.
    for package in PACKAGES:
        exported = tree.modules[package].exported if package in tree.modules else ()
        for name in sorted(set(exported)):
            if f"{package}.{name}" in tree.modules:
                yield f"{package} exports {name}, which is the name of a module of its own"


def rooms_import_one_another_one_way(tree: "Tree") -> Iterator[str]:
    """A room is a package, or a module that stands beside the packages. What is imported late is no arrow: that way pgqrs
    comes to supervisors, and `@workflow()` without arguments to the builders of 0.15."""
    arrows: dict[str, dict[str, str]] = {}
    for module in tree.modules.values():
        for imported in module.imports:
            here, there = tree.room(module.name), tree.room(imported.target)
            if imported.at_top and there and here != there:
                arrows.setdefault(here, {})[there] = (
                    f"{module.name}:{imported.line} imports {imported.target}"
                )
    for here, there in ((a, b) for a in arrows for b in arrows[a]):
        waiting, seen = [there], {there}
        while waiting:
            for onward in arrows.get(waiting.pop(), {}):
                if onward == here:
                    yield f"{arrows[here][there]}, and {there} comes back to {here}"
                elif onward not in seen:
                    seen.add(onward)
                    waiting.append(onward)


RULES = [
    pgqrs_imports_supervisors_late_and_in_few_places,
    core_worker_and_flow_never_reach_the_store,
    only_the_nursery_forks,
    only_the_store_says_sql,
    few_supervisor_modules_read_a_clock,
    the_core_is_pure,
    no_module_has_the_name_of_something_exported,
    rooms_import_one_another_one_way,
]


@pytest.fixture(scope="module")
def tree_here():
    return Tree(ROOT)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_it_holds_here(rule, tree_here):
    assert list(rule(tree_here)) == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_it_holds_where_there_is_nothing(rule, tmp_path):
    assert list(rule(Tree(tmp_path))) == []


PLANTED = [
    (RULES[0], "pgqrs/model/records.py", "import supervisors"),
    (RULES[0], "pgqrs/clients/blocking.py", "from supervisors.loop.loop import run"),
    (RULES[0], "pgqrs/clients/blocking.py", "class C:\n    from supervisors.loop import loop"),
    (RULES[0], "pgqrs/values/codec.py", "def f():\n    import supervisors.loop.loop"),
    (RULES[1], "supervisors/core/core.py", "from pgqrs.store.store import Store"),
    (RULES[1], "supervisors/worker/worker.py", "def f():\n    from pgqrs import store"),
    (RULES[1], "pgqrs/flows/flow.py", "from .. import store"),
    (
        RULES[1],
        "pgqrs/flows/flow.py",
        "from pgqrs.clients.blocking import connect",
    ),  # which imports the store
    (RULES[1], "pgqrs/flows/flow.py", "from pgqrs import connect"),  # which the package takes from client
    (RULES[2], "supervisors/loop/loop.py", "import os\nos.fork()"),
    (RULES[2], "pgqrs/clients/blocking.py", "from os import fork as split\nsplit()"),
    (RULES[3], "pgqrs/clients/blocking.py", "x = 'select 1'"),
    (RULES[3], "pgqrs/clients/blocking.py", "x = f'update {table} set x = 1'"),
    (RULES[3], "supervisors/loop/loop.py", "x = '''\n  DELETE FROM pgqrs_messages'''"),
    (RULES[3], "supervisors/loop/loop.py", "x = 'with x as (insert into y values (1)) select 2'"),
    (RULES[4], "supervisors/births/nursery.py", "import time\ntime.monotonic()"),
    (RULES[4], "supervisors/core/core.py", "from datetime import datetime as d\nd.now()"),
    (RULES[4], "supervisors/core/core.py", "from time import time_ns\ntime_ns()"),
    (RULES[5], "supervisors/core/core.py", "def f():\n    import random"),
    (RULES[5], "supervisors/core/core.py", "from os.path import join"),
    (RULES[6], "pgqrs/connect.py", ""),
    (RULES[6], "pgqrs/later.py", ""),
    (RULES[7], "pgqrs/model/records.py", "from pgqrs.flows.flow import Context"),
    (RULES[7], "supervisors/worker/journal.py", "from supervisors.loop import loop"),
]


@pytest.mark.parametrize(
    ("rule", "file", "source"), PLANTED, ids=lambda part: getattr(part, "__name__", None)
)
def test_it_sees_a_planted_violation(rule, file, source, tmp_path):
    plant_innocence(tmp_path)
    assert list(rule(Tree(tmp_path))) == []
    with (tmp_path / file).open("a") as module:
        module.write("\n" + source + "\n")
    planted = file.removesuffix(".py").replace("/", ".")
    if rule is no_module_has_the_name_of_something_exported:
        planted = planted.replace(".", " exports ")
    assert any(violation.startswith(planted) for violation in rule(Tree(tmp_path)))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_it_lets_innocence_pass(rule, tmp_path):
    plant_innocence(tmp_path)
    assert list(rule(Tree(tmp_path))) == []


def plant_innocence(root: Path) -> None:
    sources = {
        "pgqrs/__init__.py": "from pgqrs.clients.blocking import connect\nfrom .model import records\nLAZY = {'clients.blocking': 'later'}",
        "pgqrs/clients/blocking.py": "from pgqrs.store.store import Store\ndef connect():\n    import supervisors.births.launch",
        "pgqrs/cli/main.py": "def main():\n    from supervisors import loop",
        "pgqrs/values/codec.py": '"""select nothing from a docstring."""\nHELP = "Select a queue, then update what is set"',
        "pgqrs/flows/flow.py": "from typing import TYPE_CHECKING\nfrom pgqrs.model import records\nfrom pgqrs.values import codec\n"
        "if TYPE_CHECKING:\n    from pgqrs.store.store import Store",
        "pgqrs/model/records.py": "",
        "pgqrs/store/__init__.py": "",
        "pgqrs/store/store.py": "import time\nx = 'select 1'\ntime.time()\nclass Store: ...",
        "supervisors/__init__.py": "",
        "supervisors/core/core.py": "from pgqrs.flows import flow\nfrom datetime import timedelta\ndef f(clock): return clock.time()",
        "supervisors/births/nursery.py": "import os, time\nos.fork()\ntime.sleep(0)",
        "supervisors/loop/loop.py": "import time\nfrom pgqrs.store import store\nfrom supervisors.worker import journal\ntime.monotonic()",
        "supervisors/worker/worker.py": "from pgqrs.flows import flow",
        "supervisors/worker/journal.py": "from time import monotonic\nfrom pgqrs.flows import flow\nmonotonic()",
    }
    for name, source in sources.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(source + "\n")


# Reading the sources


def in_store(module: str) -> bool:
    return module == "pgqrs.store" or module.startswith("pgqrs.store.")


@dataclass(frozen=True)
class Import:
    target: str  # a module of ours by its own name, else what the statement says
    line: int
    at_top: bool  # runs when the module is imported


class Tree:
    """All modules of ours under a root, by dotted name; a package by that of its __init__."""

    def __init__(self, root: Path) -> None:
        self.modules: dict[str, Module] = {}
        for path in sorted(path for package in PACKAGES for path in (root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            self.modules[name] = Module(name, path, self)

    def of(self, package: str) -> list["Module"]:
        return [module for name, module in self.modules.items() if name.split(".")[0] == package]

    def room(self, module: str) -> str:
        """Empty for a module that is not ours, and for the face of a package."""
        parts = module.split(".")
        return ".".join(parts[:2]) if len(parts) > 1 and module in self.modules else ""

    def path_to_the_store(self, path: list[str]) -> list[str] | None:
        """The shortest way on from the last of these modules, along imports that run when a module is imported.

        Only along what is written: that Python runs pgqrs/__init__.py before any pgqrs.x is no arrow that x drew.
        """
        waiting, seen = [path], {path[-1]}
        while waiting:
            path = waiting.pop(0)
            if in_store(path[-1]):
                return path
            module = self.modules.get(path[-1])
            for imported in module.imports if module else ():
                if imported.at_top and imported.target not in seen:
                    seen.add(imported.target)
                    waiting.append([*path, imported.target])
        return None


class Module:
    def __init__(self, name: str, path: Path, tree: Tree) -> None:
        self.name = name
        self.tree = tree
        self.ast = ast.parse(path.read_text(), str(path))
        self.is_package = path.name == "__init__.py"

    @cached_property
    def imports(self) -> list[Import]:
        return [
            Import(target, node.lineno, at_top)
            for node, at_top in walk(self.ast)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for target in self.targets(node)
        ]

    def targets(self, node: ast.Import | ast.ImportFrom) -> list[str]:
        if isinstance(node, ast.Import):
            return [alias.name for alias in node.names]
        base = self.base(node)
        # `from pgqrs import codec` names a module, `from pgqrs import connect` something in one.
        inner = [f"{base}.{alias.name}" for alias in node.names]
        return list(dict.fromkeys(name if name in self.tree.modules else base for name in inner))

    def base(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        package = self.name.split(".") if self.is_package else self.name.split(".")[:-1]
        package = package[: len(package) - (node.level - 1)]
        return ".".join([*package, *([node.module] if node.module else [])])

    @cached_property
    def calls(self) -> list[tuple[str, int]]:
        """(what is called by the name it has where it was imported from, line)."""
        known = {}
        for node, _ in walk(self.ast):
            if isinstance(node, ast.Import):
                known |= {alias.asname: alias.name for alias in node.names if alias.asname}
            elif isinstance(node, ast.ImportFrom):
                known |= {
                    alias.asname or alias.name: f"{self.base(node)}.{alias.name}" for alias in node.names
                }
        found = []
        for node, _ in walk(self.ast):
            if isinstance(node, ast.Call):
                first, _, rest = ast.unparse(node.func).partition(".")
                found.append((".".join(filter(None, [known.get(first, first), rest])), node.lineno))
        return found

    @cached_property
    def strings(self) -> list[tuple[str, int]]:
        """(text, line) of all literals but docstrings; an f-string is one, with x for what it fills in."""
        skipped = set()
        found = []
        for node, _ in walk(self.ast):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                skipped.add(node.value)
            elif isinstance(node, ast.JoinedStr):
                skipped |= {part for part in node.values if isinstance(part, ast.Constant)}
                parts = [str(part.value) if isinstance(part, ast.Constant) else "x" for part in node.values]
                found.append(("".join(parts), node.lineno))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in skipped:
                found.append((node.value, node.lineno))
        return found

    @cached_property
    def exported(self) -> set[str]:
        """Names that this package binds itself, lists in __all__ or tells for a lazy __getattr__ (module: its names); its modules are
        none."""
        names = set()
        for node in self.ast.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.ImportFrom):
                base = self.base(node)
                names |= {
                    alias.asname or alias.name
                    for alias in node.names
                    if f"{base}.{alias.name}" not in self.tree.modules or base != self.name
                }
            elif isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(
                node.value, ast.List | ast.Tuple | ast.Dict
            ):
                entries = node.value.values if isinstance(node.value, ast.Dict) else node.value.elts
                names |= {
                    name
                    for entry in entries
                    if isinstance(entry, ast.Constant) and isinstance(entry.value, str)
                    for name in entry.value.split()
                }
        return names


def walk(tree: ast.AST, at_top: bool = True) -> Iterator[tuple[ast.AST, bool]]:
    """Every node, a parent before its children, and whether it runs when the module is imported.

    What stands under `if TYPE_CHECKING` never runs, and is left out.
    """
    yield tree, at_top
    if isinstance(tree, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        at_top = False
    children = ast.iter_child_nodes(tree)
    if isinstance(tree, ast.If) and ast.unparse(tree.test).endswith("TYPE_CHECKING"):
        children = iter(tree.orelse)
    for child in children:
        yield from walk(child, at_top)
