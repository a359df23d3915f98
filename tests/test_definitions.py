"""The decorators: what they learn, and that the function stays what it was."""

import asyncio
import types

import pytest

import pgqrs
from pgqrs import errors
from pgqrs.flows.definitions import NAME_CHARS_MAX, definition_of, definitions_in, distinct


def test_a_workflow_and_its_queue_are_named_after_the_function():
    @pgqrs.workflow
    def archive(path: str) -> int:
        """Archives."""
        return len(path)

    d = definition_of(archive)
    assert (d.kind, d.name, d.queue, d.is_async, d.function) == (
        "workflow",
        "archive",
        "archive",
        False,
        archive,
    )
    assert (archive("abc"), archive.__doc__, archive.__annotations__) == (
        3,
        "Archives.",
        {"path": str, "return": int},
    )


def test_names_can_be_given():
    @pgqrs.workflow(name="n", queue="q")
    def one(): ...

    @pgqrs.workflow(name="n")
    def two(): ...

    @pgqrs.handler(queue="tasks")
    def three(x): ...

    assert [(definition_of(f).name, definition_of(f).queue) for f in (one, two, three)] == [
        ("n", "q"), ("n", "n"), ("three", "tasks"),
    ]  # fmt: skip


def test_a_step_keeps_its_face():
    @pgqrs.step(retry=2, timeout="10m", pure=True)
    def one(x: int) -> int:
        """Doc."""
        return x + 1

    known = one.__pgqrs_step__
    assert (known.name, known.retry.max_attempts, known.timeout_s, known.pure) == ("one", 2, 600.0, True)
    assert (one(1), one.__name__, one.__doc__, one.__annotations__["x"]) == (2, "one", "Doc.", int)


def test_async_functions_stay_async():
    @pgqrs.step
    async def one(x):
        return x

    @pgqrs.workflow
    async def flow(x):
        return await one(x)

    assert asyncio.iscoroutinefunction(one)
    assert asyncio.iscoroutinefunction(flow)
    assert definition_of(flow).is_async
    assert asyncio.run(flow(3)) == 3


@pytest.mark.parametrize("decorate", [pgqrs.workflow, pgqrs.handler(queue="q")])
def test_a_generator_is_refused(decorate):
    def generates(x):
        yield x

    async def generates_too(x):
        yield x

    for f in (generates, generates_too):
        with pytest.raises(errors.ValidationError, match="generator"):
            decorate(f)


@pytest.mark.parametrize("name", ["x" * (NAME_CHARS_MAX + 1), "a\0b", "a\nb"])
def test_what_cannot_be_a_name_is_refused(name):
    for decorate in (pgqrs.workflow, pgqrs.step):
        with pytest.raises(errors.ValidationError, match="cannot name a"):
            decorate(name=name)(lambda: None)


def test_a_handler_takes_one_argument():
    for f in (lambda: 0, lambda a, b: 0):
        f.__name__ = "handle"
        with pytest.raises(errors.ValidationError, match="must take one argument"):
            pgqrs.handler(queue="q")(f)


@pytest.mark.parametrize("options", [{"retry": -1}, {"retry": "3"}, {"timeout": -1}, {"timeout": "soon"}])
def test_options_that_cannot_be_are_refused_where_they_stand(options):
    with pytest.raises(errors.ValidationError):
        pgqrs.step(**options)(lambda: None)


def test_what_was_not_decorated_is_no_definition():
    with pytest.raises(errors.ValidationError, match=r"decorate it with @pgqrs\.workflow"):
        definition_of(len)


@pgqrs.workflow
def one(): ...


@pgqrs.workflow(name="one", queue="elsewhere")
def the_same_name(): ...


@pgqrs.workflow(queue="one")
def the_same_queue(): ...


def test_a_modules_definitions_are_found_once():
    module = types.ModuleType("module")
    module.a, module.b, module.c = one, one, 42
    assert definitions_in(module) == [definition_of(one)]


def test_two_of_one_name_or_queue_are_refused():
    with pytest.raises(errors.ValidationError, match="two functions are named 'one'"):
        distinct([definition_of(one), definition_of(the_same_name)])
    with pytest.raises(errors.ValidationError, match="'one' and 'the_same_queue' are both on queue 'one'"):
        distinct([definition_of(one), definition_of(the_same_queue)])
