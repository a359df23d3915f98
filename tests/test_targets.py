"""What a supervisor can be pointed at, and what it says of what it cannot."""

import sys

import pytest

import pgqrs
from pgqrs import errors, targets

PIPELINE = """
import pgqrs

@pgqrs.workflow
def first(): return 1

@pgqrs.workflow
def second(): return 2

def plain(): ...
"""


@pytest.fixture(autouse=True)
def imports_are_forgotten(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture
def file(tmp_path):
    def write(text, name="a_pipeline_of_tests.py"):
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write


def names(target):
    return [d.name for d in targets.load(target)]


def test_a_file_gives_its_workflows(file):
    path = file(PIPELINE)
    target = targets.parse(path)
    assert (str(target), target.sys_path) == (path, (path.rpartition("/")[0],))
    assert names(target) == ["first", "second"]
    assert "a_pipeline_of_tests" in sys.modules


def test_one_of_a_file_can_be_named(file):
    assert names(targets.parse(file(PIPELINE) + ":second")) == ["second"]


def test_a_file_finds_what_lies_beside_it(file):
    file("value = 7", "beside_the_pipeline_of_tests.py")
    path = file("from beside_the_pipeline_of_tests import value\n" + PIPELINE)
    assert names(targets.parse(path)) == ["first", "second"]


def test_a_module_is_found_in_the_current_folder(file, tmp_path, monkeypatch):
    file(PIPELINE, "a_module_of_tests.py")
    monkeypatch.chdir(tmp_path)
    assert names(targets.parse("a_module_of_tests:first")) == ["first"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nowhere.py", "no such file: nowhere.py"),
        ("dir/nowhere.py:x", "no such file"),
        ("a-b", "neither a Python file nor a module's name"),
        ("", "neither a Python file nor a module's name"),
        ("a..b", "neither a Python file nor a module's name"),
        ("module:1x", "'1x' cannot be the name of a workflow"),
        ("module:", "'' cannot be the name of a workflow"),
    ],
)
def test_what_is_neither_says_so(text, said):
    with pytest.raises(errors.TargetError, match=said):
        targets.parse(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1", "holds no workflow; decorate a function"),
        ("def broken(:", "SyntaxError"),
        ("import no_such_module_at_all", "no_such_module_at_all"),
        ("1 / 0", "ZeroDivisionError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
    ],
)
def test_a_file_that_gives_nothing_says_why(text, said, file):
    with pytest.raises(errors.TargetError, match=said):
        targets.load(targets.parse(file(text)))


def test_an_error_shows_where_it_is_in_the_users_file_and_nothing_of_ours(file):
    with pytest.raises(errors.TargetError) as told:
        targets.load(targets.parse(file("def f():\n    return 1 / 0\n\nf()")))
    assert "a_pipeline_of_tests.py" in str(told.value)
    assert "line 2" in str(told.value)
    assert "targets.py" not in str(told.value)
    assert "importlib" not in str(told.value)


def test_a_name_that_is_not_there_says_what_is(file):
    for name in ("nothing", "plain"):
        with pytest.raises(
            errors.TargetError, match=rf"no workflow or handler named '{name}'; there is: first, second"
        ):
            targets.load(targets.parse(file(PIPELINE) + ":" + name))


def test_a_module_that_is_not_there_says_where_it_was_looked_for():
    with pytest.raises(errors.TargetError, match="no module named 'no_such_module_at_all'"):
        targets.load(targets.parse("no_such_module_at_all"))
    with pytest.raises(errors.TargetError, match="no module named"):
        targets.load(targets.parse("pgqrs.no_such_module_at_all"))


def test_functions_of_a_module_go_by_its_name(file):
    [first, second] = targets.load(targets.parse(file(PIPELINE)))
    target = targets.of_functions([first.function, second.function])
    assert (target.module, target.name, target.pickled) == ("a_pipeline_of_tests", "first,second", None)
    assert names(target) == ["first", "second"]


def test_functions_that_cannot_be_imported_go_as_bytes():
    factor = 3

    @pgqrs.step
    def inner(x):
        return x * factor

    @pgqrs.workflow
    def outer(x: int) -> int:
        return inner(x)

    target = targets.of_functions([outer])
    assert target.pickled is not None
    [found] = targets.load(target)
    assert (found.name, found.function(2)) == ("outer", 6)


def test_no_functions_at_all_are_refused():
    with pytest.raises(errors.TargetError, match="name at least one"):
        targets.of_functions([])
    with pytest.raises(errors.ValidationError, match="no workflow or handler"):
        targets.of_functions([len])
