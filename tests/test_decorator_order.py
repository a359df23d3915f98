"""A decorator that stands where workers would leave it out is refused, with the order to write."""

import functools
import itertools
import sys
import types

import pytest

import pgqrs
from pgqrs import errors
from pgqrs.flows.definitions import definition_of, definitions_in, refuse_replaced
from pgqrs.program import targets


def audited(f):
    @functools.wraps(f)
    def inner(*args, **kwargs):
        return f(*args, **kwargs)

    return inner


def silent(f):
    def inner(*args, **kwargs):
        return f(*args, **kwargs)

    return inner


class Wrapper:
    def __init__(self, f):
        functools.update_wrapper(self, f)
        self.f = f

    def __call__(self, *args, **kwargs):
        return self.f(*args, **kwargs)


class SilentWrapper:
    def __init__(self, f):
        self.f = f

    def __call__(self, *args, **kwargs):
        return self.f(*args, **kwargs)


class SlotWrapper:
    __slots__ = ("f",)

    def __init__(self, f):
        self.f = f

    def __call__(self, *args, **kwargs):
        return self.f(*args, **kwargs)


def renamed_partial(f):
    return functools.update_wrapper(functools.partial(f), f)


OUTER = [audited, silent, Wrapper, SilentWrapper, functools.partial, renamed_partial, functools.cache]
OURS = [pgqrs.workflow, pgqrs.workflow(name="n"), pgqrs.handler(queue="q")]


def plain(x: int) -> int:
    return x


def fresh():
    """Each decorated on its own."""

    def work(x: int) -> int:
        return x

    return work


@pytest.mark.parametrize("outer", OUTER)
@pytest.mark.parametrize("ours", OURS)
def test_what_wraps_a_decorated_function_is_no_workflow(outer, ours) -> None:
    wrapped = outer(ours(fresh()))
    with pytest.raises(errors.ValidationError, match=r"workers would run .* without it; write @pgqrs"):
        definition_of(wrapped)


@pytest.mark.parametrize("outer", [audited, silent, Wrapper, functools.partial])
def test_it_can_be_neither_triggered_nor_given_to_workers(outer, sqlite_dsn: str) -> None:
    wrapped = outer(pgqrs.workflow(fresh()))
    with pgqrs.connect(sqlite_dsn) as store:
        with pytest.raises(errors.ValidationError, match=r"write @pgqrs.workflow above all other decorators"):
            store.trigger(wrapped, 1)
        with (
            pytest.raises(errors.ValidationError, match="above all other decorators"),
            store.workers(wrapped),
        ):
            pass


@pytest.mark.parametrize("inner", [audited, silent])
def test_a_decorator_below_ours_is_part_of_what_runs(inner) -> None:
    decorated = pgqrs.workflow(name="n")(inner(fresh()))
    assert definition_of(decorated).function is decorated
    assert decorated(3) == 3


# A module whose name for a workflow holds something else

MODULE = """
import functools
import pgqrs
from tests.test_decorator_order import *

{decorator}
@pgqrs.{ours}
def work(x: int) -> int:
    return x

@pgqrs.workflow
def other() -> int:
    return 1
"""


@pytest.fixture
def loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    count = itertools.count()

    def load(text: str) -> list[str]:
        path = tmp_path / f"a_module_with_decorators_{next(count)}.py"
        path.write_text(text)
        return [d.name for d in targets.load(targets.parse(str(path)))]

    yield load
    for name in [n for n in sys.modules if n.startswith("a_module_with_decorators")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    "outer", [o.__name__ for o in (*OUTER[:4], SlotWrapper)] + ["functools.partial", "functools.cache"]
)
@pytest.mark.parametrize("ours", ["workflow", 'handler(queue="q")'])
def test_a_module_where_something_else_has_the_name_of_a_workflow_is_refused(
    loaded, outer: str, ours: str
) -> None:
    with pytest.raises(errors.ValidationError, match="above all other decorators"):
        loaded(MODULE.format(decorator=f"@{outer}", ours=ours))


def test_also_where_only_another_one_of_it_is_asked_for(loaded, tmp_path) -> None:
    path = tmp_path / "a_module_with_decorators_of_which_one.py"
    path.write_text(MODULE.format(decorator="@silent", ours="workflow"))
    with pytest.raises(errors.ValidationError, match="'work'"):
        targets.load(targets.parse(f"{path}:other"))


@pytest.mark.parametrize(
    "then",
    [
        "",
        "del work",
        "work = None",
        "@pgqrs.workflow\ndef work() -> int:\n    return 2",
        "def work():\n    return 2",
        "again = work",
        "class Calls:\n    def __init__(self):\n        self.work = work\ncalls = Calls()",
        "def calls(f):\n    return lambda: f()\nlater = calls(work)",
    ],
)
def test_a_name_given_to_something_of_its_own_is_no_mistake(loaded, then: str) -> None:
    assert "other" in loaded(MODULE.format(decorator="", ours="workflow") + then)


def test_a_proxy_that_answers_with_an_exception_is_no_mistake() -> None:
    class Proxy:
        def __getattr__(self, name):
            raise RuntimeError("outside a request")

    module = types.ModuleType("module")
    module.proxy, module.work = Proxy(), pgqrs.workflow(fresh())
    refuse_replaced(module)
    assert [d.name for d in definitions_in(module)] == ["work"]


# Steps


def test_a_decorator_above_a_step_runs_where_the_step_is_called() -> None:
    said = []

    def telling(f):
        @functools.wraps(f)
        def inner(x):
            said.append(x)
            return f(x)

        return inner

    step = telling(pgqrs.step(fresh()))
    assert (step(3), said) == (3, [3])


@pytest.mark.parametrize("cache", ["functools.cache", "functools.lru_cache(maxsize=3)"])
def test_a_cache_above_a_step_would_keep_it_from_being_recorded(loaded, cache: str) -> None:
    text = MODULE.format(decorator=f"@{cache}", ours="step")
    with pytest.raises(errors.ValidationError, match=r"write the cache below @pgqrs\.step"):
        loaded(text)
    assert loaded(text.replace(f"@{cache}\n@pgqrs.step", f"@pgqrs.step\n@{cache}")) == ["other", "work.map"]


# What ours cannot stand above


class Jobs:
    def method(self, n: int) -> int:
        return n

    @classmethod
    def of_class(cls, n: int) -> int:
        return n

    @staticmethod
    @pgqrs.workflow
    def static(n: int) -> int:
        return n + 1

    @pgqrs.step
    def step(self, n: int) -> int:
        return n


@pytest.mark.parametrize(
    ("decorate", "function", "said"),
    [
        (pgqrs.workflow, staticmethod(plain), "write @staticmethod above @pgqrs.workflow"),
        (pgqrs.workflow, classmethod(plain), "write @classmethod above @pgqrs.workflow"),
        (pgqrs.handler(queue="q"), staticmethod(plain), "write @staticmethod above @pgqrs.handler"),
        (pgqrs.step, staticmethod(plain), "write @staticmethod above @pgqrs.step"),
        (pgqrs.step, classmethod(plain), "write @classmethod above @pgqrs.step"),
        (pgqrs.step, property(plain), "cannot decorate a property"),
        (pgqrs.step, Jobs, "not the class Jobs"),
        (pgqrs.workflow, Jobs, "not the class Jobs"),
        (pgqrs.workflow, max, "write a def that calls it"),
        (pgqrs.workflow, Jobs.method, "takes 'self', and a worker has no object to give it"),
        (pgqrs.workflow, Jobs.of_class.__func__, "takes 'cls', and a worker"),
        (pgqrs.handler(queue="q"), Jobs.method, "takes 'self'"),
        (pgqrs.step, Jobs.static, r"'static' is a workflow already, .* write @pgqrs.workflow above @pgqrs.step"),
        (pgqrs.handler(queue="q"), Jobs.static, "is a workflow already, and cannot be a handler as well"),
        (pgqrs.step, Jobs.step, "is a step already"),
        (pgqrs.step, audited(Jobs.step), "is a step already, or wraps one"),
        (pgqrs.workflow, audited(Jobs.static), "above all other decorators"),
        (pgqrs.step, audited(Jobs.static), "above all other decorators"),
    ],
)  # fmt: skip
def test_what_ours_cannot_stand_above_is_refused_where_it_stands(decorate, function, said: str) -> None:
    with pytest.raises(errors.ValidationError, match=said):
        decorate(function)


def test_a_workflow_that_was_bound_to_an_object_is_refused() -> None:
    class Late:
        pass

    Late.work = pgqrs.workflow(fresh())
    with pytest.raises(errors.ValidationError, match="is a method here, bound to Late"):
        definition_of(Late().work)


def test_what_was_right_stays_right() -> None:
    assert definition_of(Jobs.static).name == "static"
    assert definition_of(Jobs().static).function is Jobs.static
    assert Jobs().step(4) == 4
    partial = pgqrs.workflow(name="p")(functools.partial(plain, 3))
    assert definition_of(partial).name == "p"
    recorded = pgqrs.workflow(name="one_step")(pgqrs.step(fresh()))
    assert definition_of(recorded).function(2) == 2
