"""What a supervisor can be pointed at, and what it says of what it cannot."""

import importlib
import importlib.util
import json  # noqa: F401
import os
import stat
import sys
import types

import pytest

import pgqrs
from pgqrs import errors
from pgqrs.program import by_value, targets  # noqa: F401  # which dill must not be imported twice for

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
    with targets.of_functions([first.function, second.function]) as target:
        [source] = target.sources
        assert (source.module, source.names, target.by_value) == (
            "a_pipeline_of_tests",
            ("first", "second"),
            None,
        )
        assert names(target) == ["first", "second"]


def test_functions_of_several_modules_go_by_their_names(file, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    file(PIPELINE, "one_of_the_modules.py")
    file(PIPELINE.replace("first", "third"), "another_of_the_modules.py")
    one, another = (importlib.import_module(n) for n in ("one_of_the_modules", "another_of_the_modules"))
    with targets.of_functions([one.first, another.third]) as target:
        assert [(s.module, s.names, s.path) for s in target.sources] == [
            ("one_of_the_modules", ("first",), None),
            ("another_of_the_modules", ("third",), None),
        ]
        assert names(target) == ["first", "third"]


def test_what_is_in_a_class_goes_by_its_dotted_name(file, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    text = "import pgqrs\nclass Jobs:\n    @staticmethod\n    @pgqrs.workflow\n    def one(): return 1\n"
    file(text, "a_class_of_the_tests.py")
    module = importlib.import_module("a_class_of_the_tests")
    with targets.of_functions([module.Jobs.one]) as target:
        assert (target.sources[0].names, names(target)) == (("Jobs.one",), ["one"])


def test_a_module_that_no_search_finds_goes_by_its_file_with_the_packages_around_it(file, tmp_path):
    """pytest imports a test module so, with --import-mode=importlib."""
    (tmp_path / "around").mkdir()
    file("value = 7", "around/beside.py")
    path = file("from .beside import value\n" + PIPELINE, "around/inner.py")
    package = types.ModuleType("around_of_tests")
    package.__path__ = [str(tmp_path / "around")]
    sys.modules["around_of_tests"] = package
    spec = importlib.util.spec_from_file_location("around_of_tests.inner", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["around_of_tests.inner"] = module
    spec.loader.exec_module(module)
    with targets.of_functions([module.first]) as target:
        [source] = target.sources
        assert (source.module, source.path) == ("around_of_tests.inner", path)
        for name in [n for n in sys.modules if n.startswith("around_of_tests")]:
            del sys.modules[name]
        assert names(target) == ["first"]
        assert sys.modules["around_of_tests.inner"].value == 7


def test_a_function_within_a_function_goes_by_value_with_the_variables_around_it():
    factor = 3

    @pgqrs.step
    def inner(x):
        return x * factor

    @pgqrs.workflow
    def outer(x: int) -> int:
        return inner(x)

    with targets.of_functions([outer]) as target:
        assert target.by_value is not None
        assert stat.S_IMODE(os.stat(target.by_value).st_mode) == 0o600
        [found] = targets.load(target)
        assert (found.name, found.function(2)) == ("outer", 6)
        assert found.function is not outer
    assert not os.path.exists(target.by_value)


COUNT = 0


def test_a_function_within_a_function_has_the_globals_of_its_module(monkeypatch):
    monkeypatch.setitem(globals(), "COUNT", 0)

    @pgqrs.workflow
    def counts() -> int:
        global COUNT
        COUNT += 1
        return COUNT

    with targets.of_functions([counts]) as target:
        [found] = targets.load(target)
    assert (found.function(), counts(), COUNT) == (1, 2, 2)


def test_a_file_whose_name_another_module_has_is_refused(file):
    with pytest.raises(errors.TargetError, match=r"imported as 'json', .* rename the file"):
        targets.load(targets.parse(file(PIPELINE, "json.py")))


def test_no_functions_at_all_are_refused():
    with pytest.raises(errors.TargetError, match="name at least one"), targets.of_functions([]):
        pass
    with pytest.raises(errors.ValidationError, match="no workflow or handler"), targets.of_functions([len]):
        pass
