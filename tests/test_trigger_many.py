"""`trigger_many` takes a list of arguments, one a run, or pairs of arguments and keywords; anything else is told in words."""

import asyncio
import dataclasses
import datetime as dt
import re
from pathlib import Path
from typing import Any

import pytest

import pgqrs
from pgqrs.errors import SerializationError, ValidationError

pytestmark = pytest.mark.backends("sqlite", "postgres")


@dataclasses.dataclass
class Job:
    path: Path


@pgqrs.workflow
def compress(file: Path) -> str:
    return str(file)


@pgqrs.workflow
def convert(source: Path, target: Path, level: int = 1) -> None: ...


@pgqrs.workflow
def take(x: Any) -> Any: ...


@pgqrs.workflow
def work(job: Job, dry_run: bool = False) -> None: ...


@pgqrs.handler(queue="plain")
def handle(payload: Any) -> None: ...


def short(value: object) -> str:
    """For the name of a test: the same in every process."""
    if isinstance(value, set | frozenset):
        return str(sorted(map(short, value)))[:60]
    return re.sub(r" at 0x\w+", "", repr(value))[:60]


@pytest.fixture
def store(dsn):
    with pgqrs.connect(dsn) as store:
        if not store.config.embedded:
            store.install()
        yield store


def inputs(handles):
    return [handle.record().input for handle in handles]


@pytest.mark.parametrize(
    "make", [list, tuple, iter, lambda files: (f for f in files), lambda files: dict.fromkeys(files).keys()]
)
def test_each_argument_is_a_run_in_order(store, make):
    files = [Path("a"), Path("b"), Path("c")]
    handles = store.trigger_many(compress, make(files))
    assert inputs(handles) == ["a", "b", "c"]
    assert [h.id for h in handles] == sorted(h.id for h in handles)


@pytest.mark.parametrize(
    "workflow,calls,stored",
    [
        (take, [1, "text", [1, 2], {"a": 1}, (1, 2)], [1, "text", [1, 2], {"a": 1}, [1, 2]]),
        (take, [((1,), {}), ((), {"x": 2}), ([3], {})], [1, 2, 3]),
        (take, [(1, {}), ({}, 1)], [[1, {}], [{}, 1]]),
        (work, [Job(Path("a")), {"path": "b"}], [{"job": {"path": "a"}}, {"job": {"path": "b"}}]),
        (convert, [(("a", "b"), {"level": 9})], [{"source": "a", "target": "b", "level": 9}]),
        ("by_name", [5, "text", ((6,), {}), ((), {"a": 1})], [5, "text", 6, {"a": 1}]),
        (take, [], []),
    ],
    ids=short,
)
def test_a_call_is_one_argument_or_a_pair(store, workflow, calls, stored):
    assert inputs(store.trigger_many(workflow, calls)) == stored


@pytest.mark.parametrize(
    "workflow,calls,error,says",
    [
        (
            compress,
            "files",
            ValidationError,
            r"takes a list of arguments, one for each run, and not a str; for one run use",
        ),
        (compress, b"files", ValidationError, "and not a bytes"),
        (compress, {"file": "a"}, ValidationError, "and not a dict"),
        (compress, 5, ValidationError, "and not a int"),
        (compress, None, ValidationError, "and not a NoneType"),
        (compress, Path("a"), ValidationError, "and not a PosixPath"),
        ("by_name", "abc", ValidationError, "and not a str"),
        (
            convert,
            ["a", "b"],
            ValidationError,
            r"call 0 of 2, counted from 0: convert\(\) got wrong arguments: .*'target'",
        ),
        (convert, [(("a", "b"), {}), ("a", "b")], ValidationError, r"call 1 of 2, .*'target'"),
        (
            compress,
            [Path("a"), 5, Path("b")],
            SerializationError,
            r"call 1 of 3, counted from 0: argument 'file'",
        ),
        (compress, [(("a",), {"other": 1})], ValidationError, "unexpected keyword argument 'other'"),
        (take, [1, dt.datetime.now], SerializationError, r"call 1 of 2, .*builtin_function_or_method"),
        (handle, [1], ValidationError, "is a handler"),
        (len, ["a"], ValidationError, "is no workflow"),
    ],
    ids=short,
)
def test_a_wrong_shape_is_told_in_words_and_nothing_is_sent(store, workflow, calls, error, says):
    with pytest.raises(error, match=says):
        store.trigger_many(workflow, calls)
    assert [q.ready for q in store.queues()] in ([], [0])


def test_the_async_twin_takes_the_same(dsn):
    async def sent():
        async with pgqrs.connect(dsn) as store:
            if not store.config.embedded:
                await store.install()
            handles = await store.trigger_many(compress, (Path(name) for name in "ab"))
            assert [(await handle.record()).input for handle in handles] == ["a", "b"]
            [handle] = await store.trigger_many(convert, [(("a", "b"), {"level": 9})])
            assert (await handle.record()).input == {"source": "a", "target": "b", "level": 9}
            with pytest.raises(ValidationError, match="and not a str"):
                await store.trigger_many(compress, "files")

    asyncio.run(sent())
