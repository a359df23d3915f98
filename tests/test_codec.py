"""Python values become JSON and come back by their annotation; what JSON would change or lose is refused."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import decimal
import enum
import functools
import inspect
import json
import re
import subprocess
import sys
import types
import typing
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, NamedTuple, Optional, TypedDict, Union

import attrs
import msgspec
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgqrs.errors import SerializationError, ValidationError
from pgqrs.values import codec
from pgqrs.values.codec import decode, encode, parse_json, unwrap_input, wrap_input
from pgqrs.values.signature import signature_of


class Colour(enum.Enum):
    Red = "red"
    Blue = "blue"


@dataclasses.dataclass
class Point:
    x: float
    y: float = 0.0


@dataclasses.dataclass
class Job:
    path: Path
    at: dt.datetime
    points: list[Point]
    parent: Job | None = None


class Item(msgspec.Struct):
    name: str
    tags: set[str] = set()


class Row(TypedDict):
    id: int
    when: dt.date


class Pair(NamedTuple):
    left: int
    right: str = "r"


@attrs.define
class Gear:
    teeth: int


@attrs.define
class Secretive:
    teeth: int
    _hidden: int = 0


class Model(pydantic.BaseModel):
    name: str
    at: dt.date = dt.date(2020, 1, 1)
    size: float = 1.0


class Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True, extra="forbid")

    at: dt.datetime
    inner: Model
    aliased: int = pydantic.Field(1, alias="Aliased")
    renamed: int = pydantic.Field(2, serialization_alias="Renamed")

    @pydantic.computed_field
    @property
    def double(self) -> int:
        return self.aliased * 2


@dataclasses.dataclass
class Cat:
    name: str


@dataclasses.dataclass
class Dog:
    name: str
    breed: str


@dataclasses.dataclass
class HoldsModels:
    models: list[Model]
    path: Path | None = None


class Text(str):
    __slots__ = ()

    def __str__(self):
        return "something else"


class Custom:
    pass


def encoded(value, **options):
    return encode(value, what="the value", **options)


def there_and_back(value, annotation):
    return decode(encoded(value), annotation, what="the value")


# Round trips

MOMENT = dt.datetime(2024, 2, 29, 12, 30, 1, 5, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    "value,annotation",
    [
        (None, None),
        (True, bool),
        (2**64, int),
        (-(10**300), int),
        (1.5, float),
        ("é\U0001f600", str),
        (b"\x00\xff", bytes),
        ([1, [2]], list[int | list[int]]),
        ((1, "a"), tuple[int, str]),
        ((1, 2, 3), tuple[int, ...]),
        ({1, 2}, set[int]),
        (frozenset({"a"}), frozenset[str]),
        ({1: "a"}, dict[int, str]),
        ({dt.date(2020, 1, 1): 1}, dict[dt.date, int]),
        ({Path("a"): 1}, dict[Path, int]),
        (Colour.Red, Colour),
        (MOMENT, dt.datetime),
        (dt.datetime(2020, 1, 1), dt.datetime),  # noqa: DTZ001
        (dt.date(2020, 1, 1), dt.date),
        (dt.time(1, 2, 3), dt.time),
        (dt.timedelta(days=-1, microseconds=5), dt.timedelta),
        (decimal.Decimal("1.10"), decimal.Decimal),
        (uuid.UUID(int=5), uuid.UUID),
        (Path("/a b/ü"), Path),
        (PurePosixPath("a/b"), PurePosixPath),
        ({"a": [Path("x")]}, dict[str, list[Path]]),
        (Job(Path("/x"), MOMENT, [Point(1.0)], Job(Path("."), MOMENT, [])), Job),
        (Item("a", {"b"}), Item),
        ({"id": 1, "when": dt.date(2020, 1, 1)}, Row),
        (Pair(1, "b"), Pair),
        (Gear(3), Gear),
        (Model(name="a"), Model),
        ([Model(name="a")], list[Model]),
        ({"k": Model(name="a")}, dict[str, Model | None]),
        (None, Model | None),
        (Strict(at=MOMENT, inner=Model(name="a"), Aliased=5), Strict),
        (HoldsModels([Model(name="a")], Path("x")), HoldsModels),
        (None, Optional[Path]),  # noqa: UP045
        (Path("x"), Optional[Path]),  # noqa: UP045
        ("a", Literal["a", 1]),
        (5, Annotated[int, msgspec.Meta(ge=0)]),
        (1, Union[int, str]),  # noqa: UP007
        ([1, 2], Sequence[int]),
        ([Path("a")], Iterable[Path]),
        ({"a": 1}, Mapping[str, int]),
        ([1, "a", None], object),
        ([1, "a", {"b": 1.5}], Any),
    ],
)
def test_a_value_comes_back_by_its_annotation(value, annotation):
    again = there_and_back(value, annotation)
    assert again == value
    assert type(again) is type(value)


@pytest.mark.parametrize(
    "value,annotation",
    [
        (Model(name="a"), Model | int),
        (5, Model | int),
        (5, Model | int | None),
        (None, Model | int | None),
        (Path("x"), Path | int),
        (dt.date(2020, 1, 1), dt.date | str),
        ("tomorrow", dt.date | str),
        ([Cat("a"), Dog("b", "c")], list[Cat | Dog]),
        ({"a": 1}, Cat | dict[str, int]),
        ({"k": [Path("x"), 1]}, dict[str, list[Path | int]]),
        ({1, 2}, set[int] | dict[str, int]),
        ([1.5], list[int] | list[float]),
        ([1], list[int] | tuple[float, ...]),
    ],
)
def test_a_union_that_msgspec_refuses_comes_back_as_its_first_member_that_loses_nothing(value, annotation):
    again = there_and_back(value, annotation)
    assert again == value
    assert type(again) is type(value)
    assert codec.check(annotation, "it") is None


def test_where_json_cannot_tell_a_union_s_members_apart_the_first_one_written_wins():
    assert there_and_back(Path("x"), Path | str) == Path("x")
    assert there_and_back(Path("x"), str | Path) == "x"
    assert there_and_back(Path("x"), list[str | Path] | str | Path) == "x"


def test_without_an_annotation_plain_data_comes_back():
    for annotation in (Any, inspect.Parameter.empty, typing.NoReturn):
        assert there_and_back((Point(1), {2}, Path("a")), annotation) == [{"x": 1, "y": 0.0}, [2], "a"]


def test_subclasses_of_text_and_numbers_are_what_they_hold():
    class Count(int):
        pass

    class Ratio(float):
        pass

    assert encoded([Text("a"), Count(5), Ratio(0.5)]) == b'["a",5,0.5]'
    assert encoded({Text("a"): 1}) == b'{"a":1}'


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8", exclude_characters="\0")),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text(st.characters(codec="utf-8", exclude_characters="\0")), inner)
    ),
    max_leaves=20,
)


@given(json_values)
def test_any_json_value_comes_back_the_same(value):
    raw = encoded(value)
    assert decode(raw, Any, what="it") == value
    assert json.loads(raw) == value
    assert decode(raw.decode(), Any, what="it") == value


@given(
    st.builds(Point, st.floats(allow_nan=False, allow_infinity=False)),
    st.datetimes(timezones=st.just(dt.UTC)),
)
def test_any_dataclass_comes_back_the_same(point, moment):
    job = Job(Path("/x"), moment, [point])
    assert there_and_back(job, Job) == job


# What is refused, before anything is written

NAN = float("nan")


@pytest.mark.parametrize(
    "value,where",
    [
        (NAN, ""),
        ([1, {"a": NAN}], r"at \$\[1\]\.a: "),
        ({"a b": float("inf")}, r'at \$\["a b"\]: '),
        (Point(1, -float("inf")), r"at \$\.y: "),
        ([Item("a"), Model(name="a", size=NAN)], r"at \$\[1\]\.size: "),
        ((None, {NAN}), r"at \$\[1\]\[0\]: "),
    ],
)
def test_a_number_that_json_has_no_word_for_is_refused_with_its_place(value, where):
    with pytest.raises(
        SerializationError,
        match=rf"^the value cannot be stored as JSON: {where}-?(nan|inf) is no JSON number",
    ):
        encoded(value)


@pytest.mark.parametrize(
    "value,where",
    [
        ("a\0", ""),
        ({"k": ["\0"]}, r"at \$\.k\[0\]: "),
        ({"k": {"a\0b": 1}}, r"at \$\.k\[.*\]: "),
        (Model(name="\0"), r"at \$\.name: "),
        (Item("\0"), r"at \$\.name: "),
        ([Path("a\0")], r"at \$\[0\]: "),
    ],
)
def test_a_nul_character_is_refused_with_its_place(value, where):
    with pytest.raises(
        SerializationError, match=rf"^the value cannot be stored as JSON: {where}text with a NUL"
    ):
        encoded(value)


@pytest.mark.parametrize(
    "value", [None, [None], "null", "\\u0000", "a\\\\u0000", {"null": None}, Model(name="null")]
)
def test_what_only_looks_like_it_is_not_refused(value):
    assert there_and_back(value, type(value) if isinstance(value, Model) else Any) == value


@pytest.mark.parametrize(
    "value,where",
    [
        (Custom(), r"a value of type .*Custom is no JSON value; use numbers"),
        ([1, {"a": Custom()}], r"at \$\[1\]\.a: a value of type .*Custom is no JSON value"),
        (Point(1, Custom()), r"at \$\.y: a .*Custom"),
        (Item("a", Custom()), r"at \$\.tags: a .*Custom"),
        (Gear(Custom()), r"at \$\.teeth: a .*Custom"),
        ({"a": {(1, 2): 3}}, r"at \$\.a: .*a dict's keys must be text"),
        ({"a": "\ud800"}, r"at \$\.a: text with half of a surrogate pair"),
        ([Path("\udcff")], r"at \$\[0\]: text with half of a surrogate pair"),
        ([10**5000], r"at \$\[0\]: Exceeds the limit"),
        (1j, "a value of type complex is no JSON value"),
        ((i for i in ()), "a value of type generator is no JSON value"),
        (types.MappingProxyType({1: 2}), "a value of type mappingproxy is no JSON value"),
        (collections.deque(), r"a value of type collections\.deque is no JSON value"),
        (int, "a value of type type is no JSON value"),
    ],
    ids=lambda part: part if isinstance(part, str) else type(part).__name__,
)
def test_what_json_cannot_carry_is_refused_with_its_place(value, where):
    with pytest.raises(SerializationError, match=rf"^the value cannot be stored as JSON: {where}"):
        encoded(value)


def test_a_model_whose_serializer_fails_is_refused_with_its_place():
    class Raw(pydantic.BaseModel):
        data: bytes

    with pytest.raises(SerializationError, match=r"at \$\[0\]: .*utf-8"):
        encoded([Raw(data=b"\xff")])


def test_what_contains_itself_is_refused():
    cycle: list[Any] = []
    cycle.append(cycle)
    with pytest.raises(SerializationError, match=r"the value .* contains itself, or is nested too deeply"):
        encoded(cycle)


def test_deep_nesting_that_can_be_encoded_is_looked_through():
    deep: Any = NAN
    for _ in range(300):
        deep = [deep]
    with pytest.raises(SerializationError, match="nan is no JSON number"):
        encoded(deep)


def test_over_the_limit_a_value_is_refused_with_both_sizes():
    assert encoded("x" * 8, limit=10) == b'"xxxxxxxx"'
    with pytest.raises(
        ValidationError, match=r"^the value is 1,003 bytes of JSON, over the limit of 1,002; store the data"
    ):
        encoded("x" * 1001, limit=1002)


# Reading what does not fit


@pytest.mark.parametrize(
    "raw,annotation,says",
    [
        (b'"a"', int, r"does not fit its annotation int: Expected `int`, got `str`"),
        (b'{"x":[]}', Point, r"annotation Point: .*\$\.x"),
        (b"[1]", list[Path], r"list\[Path\]: .*\$\[0\]"),
        (b'[{"name":1}]', list[Model], r"list\[Model\]: name: .*valid string.*\$\[0\]"),
        (b'{"name":1}', Model, r"annotation Model: name: .*valid string"),
        (b'"x"', Model | int, r"fits none of 2 types \(Model: .*; int: "),
        (b"-1", Annotated[int, msgspec.Meta(ge=0)], r">= 0"),
        (b"[1,", Any, "is no valid JSON"),
        (b'"\xff"', str, "is no valid JSON"),
        (b"[" * 100_000, Any, "nested too deeply"),
        (b"1", Custom, r"does not fit its annotation Custom: a .*Custom cannot be read from JSON"),
        (b"1", "int", "cannot be read as"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_annotation_and_the_place(raw, annotation, says):
    with pytest.raises(SerializationError, match=rf"^the output of s .*{says}"):
        decode(raw, annotation, what="the output of s")


def test_a_model_s_refusal_does_not_show_what_it_was_given():
    with pytest.raises(SerializationError) as refused:
        decode(b'{"name":["geheim"]}', Model, what="it")
    assert "geheim" not in str(refused.value)


def test_a_model_is_read_by_alias_and_by_name():
    rest = '"at":"2020-01-01T00:00:00Z","inner":{"name":"a"}'
    assert decode(f'{{{rest},"Aliased":7}}', Strict, what="it").aliased == 7
    assert decode(f'{{{rest},"aliased":7}}', Strict, what="it").aliased == 7


def test_pydantic_is_not_imported_for_those_who_do_not_use_it():
    script = "import sys; from pgqrs.values import codec; codec.encode([1], what='x'); codec.decode(b'1', int, what='x'); print('pydantic' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(codec.__file__).parent.parent
    )
    assert done.stdout == "False\n", done.stderr


def test_an_unhashable_annotation_can_be_used():
    assert decode(b"1", Annotated[int, []], what="it") == 1


@dataclasses.dataclass
class Unfinished:
    x: Undefined  # noqa: F821


@pytest.mark.parametrize(
    "annotation,says",
    [
        (Custom, r"Custom is none of numbers, text"),
        (list[Custom], "Custom is none of"),
        (Custom | None, "Custom is none of"),
        (Custom | int, "Custom is none of"),
        (dict[str, tuple[Custom, ...]], "Custom is none of"),
        (typing.Callable[[int], int], "Callable is none of"),
        (collections.abc.Iterator[int], "Iterator is none of"),
        (Secretive, r"Secretive\._hidden would be lost"),
        (list[Secretive], r"Secretive\._hidden would be lost"),
        (dataclasses.make_dataclass("Odd", [("c", Custom)]), "Custom is none of"),
        (dataclasses.make_dataclass("Odd", [("c", Path | str)]), "Type unions"),
        (enum.Enum("Odd", {"A": 1.5}), "Enums must"),
    ],
    ids=str,
)
def test_an_annotation_that_json_cannot_carry_is_known_beforehand(annotation, says):
    message = codec.check(annotation, "argument 'x' of f()")
    assert message is not None
    assert message.startswith("argument 'x' of f() has the annotation ")
    assert re.search(says, message), message


@pytest.mark.parametrize(
    "annotation",
    [
        Job,
        Item,
        Row,
        Pair,
        Gear,
        Model,
        list[Model | int],
        Any,
        object,
        None,
        Unfinished,
        typing.TypeVar("T"),
    ],
)
def test_any_other_annotation_is_let_through(annotation):
    assert codec.check(annotation, "it") is None


# A function's arguments


def no_parameter(): ...
def one(x: Point): ...
def one_plain(x): ...
def one_keyword(*, x: int): ...
def one_default(x: int = 5): ...
def one_optional(x: int | None = 5): ...
def one_anything(x=5): ...
def several(a: int, b: Path, c: list[Point] = []): ...  # noqa: B006
def defaults(a: int = 1, b: str = "b"): ...
def positional(a: int, b: Path = Path("."), /, c: int = 3): ...
def variadic(a: int, b: int = 2, *rest: Path, k: str = "k", **more: dt.date): ...
def only_args(*rest: int): ...
def only_kwargs(**more: int): ...
async def asynchronous(a: int, b: int): ...


DAY = dt.date(2020, 1, 1)
CALLS = [
    (no_parameter, (), {}, None),
    (one, (Point(1.0),), {}, {"x": 1.0, "y": 0.0}),
    (one, (), {"x": Point(1.0)}, {"x": 1.0, "y": 0.0}),
    (one_plain, ([1],), {}, [1]),
    (one_keyword, (), {"x": 5}, 5),
    (one_default, (), {}, None),
    (one_default, (7,), {}, 7),
    (one_optional, (), {}, 5),
    (one_optional, (None,), {}, None),
    (one_anything, (), {}, 5),
    (one_anything, (None,), {}, None),
    (several, (1, Path("x")), {}, {"a": 1, "b": "x"}),
    (several, (1,), {"c": [Point(1.0)], "b": Path("x")}, {"a": 1, "b": "x", "c": [{"x": 1.0, "y": 0.0}]}),
    (defaults, (), {}, {}),
    (defaults, (), {"b": "x"}, {"b": "x"}),
    (positional, (1,), {}, {"a": 1}),
    (positional, (1, Path("x")), {"c": 4}, {"a": 1, "b": "x", "c": 4}),
    (variadic, (1,), {}, {"a": 1}),
    (variadic, (1, 2, Path("x")), {"k": "j"}, {"a": 1, "b": 2, "rest": ["x"], "k": "j"}),
    (variadic, (1,), {"rest": DAY, "z": DAY}, {"a": 1, "more": {"rest": "2020-01-01", "z": "2020-01-01"}}),
    (only_args, (1, 2), {}, {"rest": [1, 2]}),
    (only_args, (), {}, {}),
    (only_kwargs, (), {"rest": 1}, {"more": {"rest": 1}}),
    (asynchronous, (1, 2), {}, {"a": 1, "b": 2}),
]


@pytest.mark.parametrize(
    "function,args,kwargs,stored", CALLS, ids=lambda part: getattr(part, "__name__", None)
)
def test_arguments_are_stored_by_name_or_alone_and_call_again_the_same(function, args, kwargs, stored):
    signature = signature_of(function)
    raw = signature.encode_input(args, kwargs)
    assert json.loads(raw) == stored
    assert called(function, *signature.decode_input(raw)) == called(function, args, kwargs)


def called(function, args, kwargs):
    bound = inspect.signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments


@given(st.data())
@settings(max_examples=50)
def test_any_arguments_call_again_the_same(data):
    days = st.dates()
    args = data.draw(st.tuples(st.integers(), st.integers()) | st.tuples(st.integers()))
    paths = data.draw(st.lists(st.sampled_from(["a", "/b", "c d"]).map(Path))) if len(args) == 2 else []
    names = st.text("abkrestmoxyz", min_size=1).filter(lambda n: n not in ("a", "b", "k"))
    kwargs = data.draw(st.dictionaries(names, days, max_size=3))
    signature = signature_of(variadic)
    again = signature.decode_input(signature.encode_input((*args, *paths), kwargs))
    assert called(variadic, *again) == called(variadic, (*args, *paths), kwargs)


@pytest.mark.parametrize(
    "function,args,kwargs,says",
    [
        (
            several,
            (1,),
            {},
            r"several\(\) got wrong arguments: missing a required argument: 'b'; it is several\(a: .*int",
        ),
        (several, (1, 2, 3, 4), {}, "too many positional arguments"),
        (several, (1, 2), {"z": 3}, "unexpected keyword argument 'z'"),
        (no_parameter, (1,), {}, r"too many positional arguments; it is no_parameter\(\)"),
    ],
)
def test_wrong_arguments_are_refused_with_the_signature(function, args, kwargs, says):
    with pytest.raises(ValidationError, match=says):
        signature_of(function).encode_input(args, kwargs)


def test_an_argument_that_json_cannot_carry_is_named():
    with pytest.raises(
        SerializationError, match=r"^the input of several\(\) cannot be stored as JSON: at \$\.b: a .*Custom"
    ):
        signature_of(several).encode_input((1, Custom()), {})
    with pytest.raises(ValidationError, match=r"^the input of one_plain\(\) is 102 bytes"):
        signature_of(one_plain).encode_input(("x" * 100,), {}, limit=50)


@pytest.mark.parametrize(
    "function,raw,error,says",
    [
        (several, b'{"a":1}', ValidationError, r"several\(\) is missing its argument 'b'; it is several\("),
        (several, b'{"a":1,"b":"x","z":1,"y":2}', ValidationError, r"several\(\) has no parameter 'z', 'y'"),
        (
            several,
            b'{"a":"1","b":"x"}',
            SerializationError,
            r"argument 'a' of several\(\) does not fit its annotation int",
        ),
        (
            several,
            b"[1,2]",
            SerializationError,
            r"the input of several\(.* must be an object with its arguments by name",
        ),
        (several, b"null", ValidationError, "is missing its argument 'a', 'b'"),
        (variadic, b'{"a":1,"rest":[1]}', SerializationError, r"argument 'rest' of variadic\(\)"),
        (
            variadic,
            b'{"a":1,"more":{"b":"2020-01-01"}}',
            ValidationError,
            r"'more' of variadic\(\) repeats its parameter 'b'",
        ),
        (one, b'{"y":1}', SerializationError, r"argument 'x' of one\(\) does not fit its annotation Point"),
        (one_default, b'"a"', SerializationError, r"argument 'x' of one_default\(\)"),
        (one_keyword, b"null", SerializationError, r"argument 'x' of one_keyword\(\)"),
        (no_parameter, b"5", SerializationError, "must be null: it takes no arguments"),
        (no_parameter, b'{"a":1}', ValidationError, r"no_parameter\(\) has no parameter 'a'"),
        (several, b"{", SerializationError, "must be an object"),
    ],
)
def test_a_stored_input_that_does_not_fit_is_refused_by_name(function, raw, error, says):
    with pytest.raises(error, match=says):
        signature_of(function).decode_input(raw)


@pytest.mark.parametrize("raw", [b"null", b"", b"{}"])
def test_an_absent_input_is_no_arguments(raw):
    assert signature_of(no_parameter).decode_input(raw) == ([], {})
    assert signature_of(defaults).decode_input(raw) == ([], {})


def test_null_is_none_unless_only_the_default_fits():
    assert signature_of(one_default).decode_input(b"null") == ([], {})
    assert signature_of(one_optional).decode_input(b"null") == ([None], {})
    assert signature_of(one_anything).decode_input(b"null") == ([None], {})
    assert signature_of(one_plain).decode_input(b"null") == ([None], {})


def test_the_result_s_annotation_is_evaluated():
    def annotated() -> list[Point]: ...
    def plain(): ...

    assert signature_of(annotated).returns == list[Point]
    assert signature_of(plain).returns is Any


def test_a_coroutine_that_nobody_awaited_says_what_to_do():
    async def step():
        pass

    with pytest.raises(
        SerializationError, match=r"a coroutine is no JSON value: await it; an async step is for"
    ):
        codec.encode([step()], what="the result")


def test_a_wrapped_or_partial_function_is_read_in_its_own_module():
    @functools.wraps(several)
    def wrapper(*args, **kwargs): ...

    assert signature_of(wrapper).annotation("b") is Path
    assert list(signature_of(functools.partial(several, 1)).parameters) == ["a", "b", "c"][1:]
    assert signature_of(functools.partial(several, 1)).annotation("b") is Path


def unknown_name(x: Undefined, y: int) -> Elsewhere: ...  # noqa: F821


def test_a_name_that_is_unknown_yet_is_looked_up_when_needed_and_then_named(monkeypatch):
    signature = signature_of(unknown_name)
    assert signature.encode_input((1, 2), {}) == b'{"x":1,"y":2}'
    with pytest.raises(
        SerializationError,
        match=r"argument 'x' of unknown_name\(\) .*'Undefined' is not defined.*TYPE_CHECKING",
    ):
        signature.decode_input(b'{"x":1,"y":2}')
    with pytest.raises(SerializationError, match=r"the result of unknown_name\(\) .*'Elsewhere'"):
        assert signature.returns
    monkeypatch.setitem(globals(), "Undefined", int)
    assert signature.decode_input(b'{"x":1,"y":2}') == ([], {"x": 1, "y": 2})


def test_a_function_with_an_unfit_annotation_is_refused_at_once():
    def takes(client: Custom): ...
    def gives() -> Custom: ...
    def odd(x): ...

    odd.__annotations__ = {"x": "1 +"}

    with pytest.raises(
        ValidationError,
        match=r"argument 'client' of takes\(\) has the annotation Custom, which JSON cannot carry",
    ):
        signature_of(takes)
    with pytest.raises(ValidationError, match=r"the result of gives\(\)"):
        signature_of(gives)
    with pytest.raises(
        ValidationError, match=r"argument 'x' of odd\(\) has the annotation '1 \+', which is no type"
    ):
        signature_of(odd)


def test_a_step_may_take_what_is_not_stored():
    def takes(client: Custom) -> int: ...
    def gives() -> Custom: ...

    assert signature_of(takes, inputs=False).returns is int
    with pytest.raises(ValidationError):
        signature_of(gives, inputs=False)


# JSON that people write, and what a trigger stores


@pytest.mark.parametrize(
    "text,compact",
    [
        (' { "a" : [ 1 , 2.50 ] } \n', b'{"a":[1,2.50]}'),
        ("12345678901234567890123", b"12345678901234567890123"),
        ("0.12345678901234567890", b"0.12345678901234567890"),
        (b'"\xc3\xa9"', '"é"'.encode()),
        ('"\\ud83d\\ude00"', b'"\\ud83d\\ude00"'),
        ('"\\\\u0000"', b'"\\\\u0000"'),
        ("null", b"null"),
    ],
)
def test_json_from_a_person_is_stored_as_written_without_white_space(text, compact):
    assert parse_json(text, what="the input") == compact


@pytest.mark.parametrize(
    "text,says",
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ("NaN", r"is no valid JSON: invalid character at line 1, column 1, at 'NaN'"),
        ('{"a":\n  [1, -Infinity]}', "at line 2, column 8, at 'Infinity"),
        ("{'a': 1}", r"object keys must be strings at line 1, column 2"),
        ('["é", x]', "column 7, at 'x]'"),
        ("[1,]", "trailing comma in array at line 1, column 4"),
        ("[1", "it ends too early"),
        ("1 2", "trailing characters"),
        ("1e999", "number out of range"),
        ('["\\ud800"]', "half of a surrogate pair at line 1, column 3"),
        ('{"a":["\\u0000"]}', r"cannot be stored: at \$\.a\[0\]: text with a NUL"),
        (b'"\xff"', "is not UTF-8 at line 1, column 2"),
        ("\ud800", "is not UTF-8"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_json_that_is_none_is_refused_with_its_place(text, says):
    with pytest.raises(ValidationError, match=rf"^the input .*{says}"):
        parse_json(text, what="the input")


def test_json_over_the_limit_is_refused_but_white_space_does_not_count():
    assert parse_json("[1,      2]", what="the input", limit=5) == b"[1,2]"
    with pytest.raises(ValidationError, match=r"the input is 5 bytes of JSON, over the limit of 4"):
        parse_json("[1, 2]", what="the input", limit=4)


@given(json_values)
def test_what_is_wrapped_can_be_unwrapped(value):
    raw = encoded(value)
    assert unwrap_input(wrap_input(raw)) == raw
    assert json.loads(wrap_input(raw)) == {"input": value}


def test_a_payload_is_unwrapped_whatever_stands_beside_the_input():
    assert unwrap_input(b' { "x": 1, "input" : {"a": [1]} } ') == b'{"a": [1]}'
    assert unwrap_input(b'{"input": null}') == b"null"


@pytest.mark.parametrize(
    "payload", [b"", b"{}", b"[1]", b"null", b'"input"', b'{"inputs":1}', b'{"input":NaN}', b'{"input":']
)
def test_any_other_payload_is_refused(payload):
    with pytest.raises(SerializationError, match=r'payload is not \{"input": …\}'):
        unwrap_input(payload)


@pytest.mark.parametrize(
    "number", ["0." + "1" * 300_000, "-0." + "0" * 300_000 + "1", "1." + "0" * 300_000 + "e5"]
)
def test_a_number_of_many_digits_is_looked_through_once(number):
    # Once for each digit would be minutes, spent before the size limit is looked at.
    with pytest.raises(ValidationError, match="over the limit of 1,000"):
        parse_json(f"[1e5,{number}]", what="the input", limit=1000)
    raw = encoded([1e30, msgspec.Raw(number.encode())])
    assert len(raw) > 300_000


@pytest.mark.parametrize(
    "number,stored",
    [
        ("1e5", "100000.0"),
        ("-1.50E+3", "-1500.0"),
        ("1e-5", "1e-5"),
        ("1.23456e2", "1.23456e2"),
        ('"1e5"', '"1e5"'),
        ('"\\"1e5"', '"\\"1e5"'),
        ('{"1e5\\\\":1e5}', '{"1e5\\\\":100000.0}'),
        ("1e" + "0" * 2000 + "5", "1e" + "0" * 2000 + "5"),
    ],
)
def test_an_exponent_is_written_out_where_it_makes_a_whole_number(number, stored):
    assert parse_json(number, what="the input") == stored.encode()


def test_an_exponent_that_no_float_has_is_left_alone():
    assert encoded(msgspec.Raw(b"1e99999999")) == b"1e99999999"
