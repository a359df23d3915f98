"""What `import pgqrs` gives: names that are imported when first asked for, and told to type checkers in a stub."""

import ast
import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import pgqrs

STUB = ast.parse((Path(pgqrs.__file__).parent / "__init__.pyi").read_text())


def test_the_stub_names_what_there_is_and_where_it_is_from():
    told = {
        alias.asname or alias.name: node.module
        for node in STUB.body
        if isinstance(node, ast.ImportFrom) and node.module != "pgqrs"
        for alias in node.names
    }
    assert told == {name: f"pgqrs.{module}" for name, module in pgqrs._MODULES.items()}


def test_the_stub_lists_what_a_star_gives():
    (listed,) = (
        ast.literal_eval(node.value)
        for node in STUB.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    assert listed == pgqrs.__all__


@pytest.mark.parametrize("name", pgqrs.__all__)
def test_a_name_is_what_its_module_has(name):
    module = import_module(f"pgqrs.{pgqrs._MODULES[name]}")
    assert getattr(pgqrs, name) is getattr(module, name)
    assert name in vars(pgqrs), "it is looked up anew each time"
    assert name in dir(pgqrs)


@pytest.mark.parametrize("former", sorted(pgqrs._FORMER))
def test_a_module_is_where_it_was(former):
    module = import_module(f"pgqrs.{former}")
    assert module is import_module(pgqrs._FORMER[former]) is getattr(pgqrs, former)
    assert module.__spec__.name == module.__name__ == pgqrs._FORMER[former]
    assert former in dir(pgqrs)


@pytest.mark.parametrize("name", pgqrs.__all__)
def test_a_name_says_what_it_is_for(name):
    """So that help() and an editor tell it, of a class's methods and properties, too."""
    named = getattr(pgqrs, name)
    told = {name: named} if callable(named) else {}
    if inspect.isclass(named):
        told |= {
            f"{name}.{a}": getattr(named, a)
            for a, value in vars(named).items()
            if not a.startswith("_") and (isinstance(value, property) or callable(getattr(named, a)))
        }
    assert [n for n, what in told.items() if not (inspect.getdoc(what) or "").strip()] == []


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'pgqrs' has no attribute 'conect'"):
        pgqrs.conect  # noqa: B018
    with pytest.raises(ImportError):
        from pgqrs import conect  # noqa: F401


def test_a_worker_process_carries_neither_a_driver_nor_an_event_loop():
    program = """
import sys
import pgqrs
import supervisors.births.nursery

@pgqrs.step
def double(x): return 2 * x

@pgqrs.workflow
def flow(x): return double(x)

@pgqrs.handler(queue="tasks")
def take(x): pgqrs.pause

print(sorted({"asyncio", "psycopg", "psycopg_pool", "sqlite3", "ssl", "click", "rich", "pgqrs.store"} & set(sys.modules)))
"""
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout == "[]\n"
