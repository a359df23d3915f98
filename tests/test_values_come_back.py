"""What a workflow is given, and what a step returns, comes back from the database as it was, or is refused with words."""

from __future__ import annotations

import array
import collections
import dataclasses
import datetime as dt
import decimal
import enum
import functools
import http
import json
import pathlib
import re
import threading
import types
import uuid
import zoneinfo
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import attrs
import msgspec
import numpy
import pydantic
import pytest

import pgqrs
from pgqrs.errors import SerializationError
from pgqrs.values import codec
from pgqrs.values.signature import signature_of

BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")
NOON = dt.datetime(2024, 3, 30, 12, tzinfo=BERLIN)


class Colour(enum.Enum):
    Red = "r"
    Blue = "b"


class Level(enum.IntEnum):
    High = 3


class Kind(enum.StrEnum):
    A = "a"


class OldKind(str, enum.Enum):  # noqa: UP042 - as before Python 3.11
    A = "a"


class Right(enum.Flag):
    Read = 1
    Write = 2


class IntRight(enum.IntFlag):
    Read = 1
    Write = 2


@dataclasses.dataclass
class Event:
    id: int


@dataclasses.dataclass
class Paid(Event):
    amount: int = 0


@dataclasses.dataclass
class Sized:
    name: str
    size: int = dataclasses.field(init=False)
    hidden: int = dataclasses.field(default=0, repr=False, compare=False)

    def __post_init__(self):
        self.size = len(self.name)


@dataclasses.dataclass
class Growing:
    count: int

    def __post_init__(self):
        self.count += 1


@dataclasses.dataclass
class Caching:
    n: int

    @functools.cached_property
    def double(self):
        return self.n * 2


@dataclasses.dataclass(eq=False, slots=True)
class NoEquality:
    n: int
    at: dt.datetime | None = None


class Renamed(msgspec.Struct, rename="camel"):
    first_name: str
    at: dt.datetime | None = None


class TaggedA(msgspec.Struct, tag=True):
    at: dt.datetime


class TaggedB(msgspec.Struct, tag=True):
    at: str


class Listed(msgspec.Struct, array_like=True, tag=True):
    n: int
    at: dt.datetime


class Pair(NamedTuple):
    left: int
    at: dt.datetime | None = None


class Row(TypedDict):
    when: dt.datetime


@attrs.define
class Gear:
    teeth: int
    at: dt.datetime | None = None


class Shape(pydantic.BaseModel):
    name: str


class Circle(Shape):
    radius: float


class Login(pydantic.BaseModel):
    user: str
    password: pydantic.SecretStr


class Part(pydantic.BaseModel):
    a: int
    note: str = pydantic.Field(default="none", exclude=True)


class Drawing(pydantic.BaseModel):
    shapes: list[Shape]


class Aliased(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    first: int = pydantic.Field(alias="First", serialization_alias="FIRST")


class Private(pydantic.BaseModel):
    a: int
    _token: str = pydantic.PrivateAttr(default="")
    _lock: Any = pydantic.PrivateAttr(default_factory=threading.Lock)

    @functools.cached_property
    def double(self):
        return self.a * 2


class Rounded(pydantic.BaseModel):
    xs: list[float]

    @pydantic.field_serializer("xs")
    def _round(self, xs):
        return [round(x, 1) for x in xs]


class When(pydantic.BaseModel):
    at: dt.datetime


class Root(pydantic.RootModel[list[int]]):
    pass


class Markup(str):
    __slots__ = ()


class Bag(dict):
    pass


class Items(list):
    pass


class Blob(bytes):
    pass


class MyPath(type(Path())):
    pass


class Moment(dt.datetime):
    pass


class Other:
    pass


def there_and_back(value, annotation):
    """As a step's result goes, and as an argument goes: both ways."""

    def result(): ...
    def takes(x): ...

    result.__annotations__ = {"return": annotation}
    takes.__annotations__ = {"x": annotation}
    signature = signature_of(takes)
    raw = codec.encode(value, what="the result", annotation=signature_of(result).checked_result)
    args, kwargs = signature.decode_payload(signature.encode_payload((value,), {}))
    by_name = signature_of(takes).decode_payload(signature.encode_payload((), {"x": value}))
    again = codec.decode(raw, annotation, what="the result")
    for one in (*args, *kwargs.values(), *by_name[0], *by_name[1].values()):
        same(one, again)
    return again


def same(again, value):
    assert type(again) is type(value)
    if not isinstance(value, NoEquality | Private) and repr(value) != "Decimal('NaN')":
        assert again == value
    if not isinstance(value, set | frozenset | NoEquality | When):
        assert repr(again) == repr(value)


def short(value: object) -> str:
    """For the name of a test: the same in every process."""
    if isinstance(value, set | frozenset):
        return str(sorted(map(short, value)))[:60]
    return re.sub(r" at 0x\w+|\(\d{4}, .*", "", repr(value))[:60]


@pytest.mark.parametrize(
    "value,annotation",
    [
        (5, int), ("a", str), (True, bool), (1.5, float), (None, None), (b"a", bytes), (5, int | str),
        (2**70, int), (1e23, float), (-0.0, float), ({"a": [1, {"b": None}]}, Any), ([1, "a"], list),
        (bytearray(b"x"), bytearray),
        ((1, "a"), tuple[int, str]), ({1, 2}, set[int]), (frozenset({Path("a")}), frozenset[Path]),
        ({1: "a"}, dict[int, str]), ({1.5: 2}, dict[float, int]), ({Colour.Red: 1}, dict[Colour, int]),
        ({dt.date(2020, 1, 1): {Path("a")}}, dict[dt.date, set[Path]]),
        (Colour.Red, Colour), (Level.High, Level), (Kind.A, Kind), (OldKind.A, OldKind), (Right.Read, Right),
        (Right.Read | Right.Write, Right), (IntRight.Read | IntRight.Write, IntRight), (http.HTTPStatus.OK, http.HTTPStatus),
        (decimal.Decimal("1.10"), decimal.Decimal), (decimal.Decimal("NaN"), decimal.Decimal), (uuid.UUID(int=5), uuid.UUID),
        (Path("/x"), Path), (pathlib.PurePosixPath("x"), pathlib.PurePosixPath), (Path("x"), Path | str), (Path("x"), Path | None),
        (dt.date(2020, 1, 1), dt.date), (dt.time(1, 2, 3, 4), dt.time), (dt.timedelta(days=-1, microseconds=1), dt.timedelta),
        (dt.datetime(2020, 1, 1), dt.datetime),  # noqa: DTZ001
        (dt.datetime(2020, 1, 1, tzinfo=dt.UTC), dt.datetime),
        (dt.datetime(2020, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=5.5))), dt.datetime),
        (Event(1), Event), (Paid(1, 2), Paid), (Paid(1, 2), Paid | int), (Sized("abc"), Sized), (Gear(3), Gear), (Pair(1), Pair),
        (Renamed("a"), Renamed), (Shape(name="a"), Shape), (Circle(name="c", radius=2.0), Circle), (Part(a=1), Part),
        ([Circle(name="c", radius=2.0)], list[Circle]), (Private(a=1), Private), (Root([1, 2]), Root),
        (Aliased(First=1, more={"a": [1]}), Aliased), (NoEquality(5), NoEquality), (When(at=dt.datetime.now(dt.UTC)), When),
        ([Paid(1), Event(2)], list[Paid | Event]),
    ],
    ids=short,
)  # fmt: skip
def test_a_value_comes_back_as_it_was(value, annotation):
    same(there_and_back(value, annotation), value)


@pytest.mark.parametrize(
    "value,annotation",
    [
        (NOON, dt.datetime), (NOON, dt.datetime | None), ([NOON, None], list[dt.datetime | None]),
        ({"a": [NOON]}, dict[str, list[dt.datetime]]), ({NOON: 1}, dict[dt.datetime, int]), ((1, NOON), tuple[int, dt.datetime]),
        ((NOON, NOON), tuple[dt.datetime, ...]), ({NOON}, set[dt.datetime]), (Pair(1, NOON), Pair), (Gear(1, NOON), Gear),
        ({"when": NOON}, Row), (Renamed("a", NOON), Renamed), (NoEquality(5, NOON), NoEquality),
        ([TaggedA(NOON), TaggedB("2024-03-30T12:00:00+01:00[Europe/Berlin]")], list[TaggedA | TaggedB]),
        (Listed(1, NOON), Listed), (NOON, dt.datetime | dt.date), (NOON, dt.datetime | int),
        (dt.datetime(2024, 3, 30, 12, tzinfo=zoneinfo.ZoneInfo("UTC")), dt.datetime),
        (dt.datetime(1800, 3, 30, 12, tzinfo=BERLIN), dt.datetime),  # an offset of 53 minutes and 28 seconds
        (dt.datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN), dt.datetime),
        (dt.datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=BERLIN), dt.datetime),
        (dt.datetime(2024, 3, 31, 2, 30, tzinfo=BERLIN), dt.datetime),  # a time of day that there was not
        (dt.datetime(2024, 3, 30, 12, 0, 0, 123, tzinfo=zoneinfo.ZoneInfo("Etc/GMT+5")), dt.datetime),
    ],
    ids=short,
)  # fmt: skip
def test_a_moment_keeps_its_time_zone_wherever_it_is(value, annotation):
    again = there_and_back(value, annotation)
    if isinstance(value, NoEquality):
        again, value = again.at, value.at
    same(again, value)
    if isinstance(value, dt.datetime):
        assert again.tzinfo is value.tzinfo
        assert (again.fold, again.utcoffset()) == (value.fold, value.utcoffset())


def test_a_moment_s_zone_is_written_as_rfc_9557_has_it():
    raw = codec.encode({"at": NOON}, what="it")
    assert raw == b'{"at":"2024-03-30T12:00:00+01:00[Europe/Berlin]"}'
    assert codec.encode(dt.datetime(2024, 1, 1, tzinfo=dt.UTC), what="it") == b'"2024-01-01T00:00:00Z"'


def test_text_that_looks_like_a_moment_stays_text():
    text = "2024-03-30T12:00:00+01:00[Europe/Berlin]"
    assert there_and_back({"a": text}, dict[str, str]) == {"a": text}
    assert there_and_back([text], Any) == [text]
    assert there_and_back([TaggedB(text)], list[TaggedA | TaggedB]) == [TaggedB(text)]
    for odd in ('"2024-03-30T12:00:00+01:00[Nowhere/Land]"', '"[x]"', '"2024[Europe/Berlin]"'):
        with pytest.raises(SerializationError):
            codec.decode(odd, dt.datetime, what="it")


def test_where_a_zone_s_rules_have_changed_the_moment_stays():
    again = codec.decode(b'"2024-03-30T12:00:00+05:00[Europe/Berlin]"', dt.datetime, what="it")
    assert again == dt.datetime(2024, 3, 30, 7, tzinfo=dt.UTC)
    assert again.tzinfo is BERLIN


# What is converted, since nothing is lost


@pytest.mark.parametrize(
    "value,annotation,again",
    [
        ("/data", Path, Path("/data")),
        ("2024-01-01", dt.date, dt.date(2024, 1, 1)),
        ({"id": 1}, Event, Event(1)),
        ({"id": 1, "at": NOON}, dict[str, Any] | None, None),
        ({"when": NOON}, Row, {"when": NOON}),
        ({"n": 1, "at": NOON}, NoEquality, None),
        ([1, 2], set[int], {1, 2}),
        ([1, 2], tuple[int, ...], (1, 2)),
        ([Path("a")], tuple[Path, ...], (Path("a"),)),
        ((1, 2), list[int], [1, 2]),
        ((1, 2), Any, [1, 2]),
        ((1, 2), Sequence[int], [1, 2]),
        ((Path("a"),), Iterable[Path], [Path("a")]),
        ({"a": 1}, Mapping[str, int], {"a": 1}),
        (5, float, 5.0),
        (bytearray(b"x"), bytes, b"x"),
        (memoryview(b"x"), bytes, b"x"),
        (Level.High, int, 3),
        (Kind.A, str, "a"),
        (Kind.A, Any, "a"),
        (OldKind.A, str, "a"),
        ({Kind.A: [Level.High]}, Any, {"a": [3]}),
        (Moment(2024, 1, 1, tzinfo=dt.UTC), dt.datetime, dt.datetime(2024, 1, 1, tzinfo=dt.UTC)),
        (Moment(2024, 3, 30, 12, tzinfo=BERLIN), dt.datetime, NOON),
        (numpy.float64(1.5), float, 1.5),
        (numpy.float32(0.5), float, 0.5),
        (numpy.int64(7), int, 7),
        (numpy.int64(7), Any, 7),
        (numpy.bool_(True), bool, True),
        (numpy.str_("a"), str, "a"),
        (numpy.bytes_(b"a"), bytes, b"a"),
        ({"x": numpy.uint8(3)}, dict[str, int], {"x": 3}),
        ({numpy.int64(1): numpy.int64(2)}, dict[int, int], {1: 2}),
        (numpy.array([[1, 2], [3, 4]]), list[list[int]], [[1, 2], [3, 4]]),
        (numpy.array([0.5]), Any, [0.5]),
        (numpy.array(["a"]), list[str], ["a"]),
        (numpy.array(3), int, 3),
        (numpy.datetime64("2024-01-01"), dt.date, dt.date(2024, 1, 1)),
        (numpy.array(["2024-01-01"], dtype="M8[D]"), list[dt.date], [dt.date(2024, 1, 1)]),
    ],
    ids=short,
)
def test_what_loses_nothing_is_converted(value, annotation, again):
    if again is None and isinstance(value, dict) and "id" in value:
        with pytest.raises(SerializationError, match=r"\$\.at: a datetime.datetime comes back as a str"):
            there_and_back(value, annotation)
    elif again is None:
        assert there_and_back(value, annotation).at.tzinfo is BERLIN
    else:
        same(there_and_back(value, annotation), again)


# What is refused


@pytest.mark.parametrize(
    "value,annotation,says",
    [
        (
            Login(user="u", password="hunter2"),
            Login,
            r"at \$\.password: a secret is not written .*get_secret_value",
        ),
        ([{"a": Login(user="u", password="hunter2")}], Any, r"at \$\[0\]\.a\.password: a secret"),
        (Part(a=1, note="keep"), Part, r"at \$\.note: .*is it excluded"),
        (
            Circle(name="c", radius=1),
            Shape,
            r"a .*Circle comes back as a .*Shape without .*; annotate it as Circle",
        ),
        ([Circle(name="c", radius=1)], list[Shape], r"at \$\[0\]: a .*Circle comes back"),
        (Drawing(shapes=[Circle(name="c", radius=1)]), Drawing, r"at \$\.shapes\[0\]: a .*Circle comes back"),
        (Rounded(xs=[1.23]), Rounded, r"at \$\.xs\[0\]: .*changed by a serializer"),
        (When(at=NOON), When, r"at \$\.at: .*time zone Europe/Berlin .*pydantic model"),
        (Paid(1, 5), Event, r"a .*Paid comes back as a .*Event without .*annotate it as Paid"),
        ({"a": [Paid(1, 5)]}, dict[str, list[Event]], r"at \$\.a\[0\]: a .*Paid"),
        (Paid(1, 5), Any, r"a .*Paid comes back as a dict; annotate it as Paid"),
        (Growing(1), Growing, r"its field 'count' comes back as another value; does __post_init__"),
        (collections.defaultdict(list, a=[1]), dict[str, list[int]], r"pass dict\(…\) of it"),
        (collections.Counter("a"), dict[str, int], r"a collections.Counter comes back as a dict .*pass dict"),
        (collections.OrderedDict(a=1), dict[str, int], r"pass dict\(…\) of it"),
        (Bag(a=1), Any, r"pass dict\(…\) of it"),
        (Items([1]), list[int], r"pass list\(…\) of it"),
        (Markup("a"), str, r"a .*Markup comes back as a str without .*pass str\(…\) of it"),
        ({"a": Markup("a")}, Any, r"at \$\.a: a .*Markup comes back as a str"),
        (Blob(b"a"), bytes, r"pass bytes\(…\) of it"),
        (MyPath("a"), Path, r"a .*MyPath comes back as a .*PosixPath"),
        (Pair(1), Any, r"a .*Pair comes back as a list"),
        (Pair(1), tuple[int, None], r"a .*Pair comes back as a tuple .*annotate it as Pair|pass tuple"),
        ({1, 2}, Any, r"a set comes back as a list"),
        (b"abc", Any, r"a bytes comes back as a str"),
        (b"abc", str | bytes, r"a bytes comes back as a str; "),
        (
            "abcd",
            bytes | str,
            r"a str comes back as a bytes, for JSON does not tell the members of the union apart",
        ),
        ("x", Path | str, r"a str comes back as a .*Path, for JSON does not tell"),
        (["x"], list[Path | str], r"at \$\[0\]: a str comes back as a"),
        (Path("x"), str | Path, r"Path comes back as a str"),
        (Path("x"), Any, r"Path comes back as a str"),
        (Path("x"), str, r"Path comes back as a str"),
        ({1: "a"}, Any, r"a key that is a int comes back as a str; annotate the keys \(dict\[int, …\]\)"),
        ({"a": {1: "a"}}, dict[str, Any], r"at \$\.a: a key that is a int"),
        ({1: "a", "1": "b"}, Any, r"two of its keys are the same in JSON"),
        ({Colour.Red: 1}, Any, r"Colour comes back as a str"),
        (Colour.Red, Any, r"a .*Colour comes back as a str; annotate it as Colour, or pass its \.value"),
        (Colour.Red, str, r"a .*Colour comes back as a str"),
        (decimal.Decimal("1.1"), Any, r"a decimal.Decimal comes back as a str"),
        (uuid.UUID(int=5), Any, r"a uuid.UUID comes back as a str"),
        (NOON, Any, r"a datetime.datetime comes back as a str"),
        (NOON.timetz(), dt.time, r"a datetime.time with the time zone Europe/Berlin comes back without"),
        (dt.datetime(2020, 1, 1, fold=1), dt.datetime, "is its fold meant"),  # noqa: DTZ001
        (dt.datetime(2020, 1, 1, tzinfo=dt.timezone(dt.timedelta(seconds=61))), dt.datetime, "a datetime"),
        (1j, Any, r"complex is no JSON value; use its \.real and \.imag"),
        (numpy.complex128(1j), Any, r"complex.* is no JSON value; use its \.real and \.imag"),
        (numpy.longdouble(1), float, r"longdouble is no JSON value; use float\(x\)|\.item\(\)|int\(x\)"),
        (numpy.datetime64("2024-01-01T00:00:00.000000001"), dt.datetime, r"datetime64 is no JSON value"),
        (
            numpy.array([("a", 1)], dtype=[("n", "U1"), ("k", "i4")]),
            Any,
            r"ndarray is no JSON value; use \.tolist\(\)",
        ),
        (numpy.ma.array([1, 2], mask=[0, 1]), list[int], r"MaskedArray is no JSON value; use \.tolist\(\)"),
        (numpy.array([float("nan")]), list[float], r"at \$\[0\]: nan is no JSON number"),
        (pydantic.SecretStr("x"), Any, r"SecretStr is no JSON value; use the name under which"),
        (array.array("d", [1.0]), Any, r"array.array is no JSON value; use .*tolist\(\)|list\(x\)"),
        (collections.deque([1]), Any, r"deque is no JSON value; use list\(x\)"),
        (types.MappingProxyType({}), Any, r"mappingproxy is no JSON value; use dict\(x\)"),
        (range(3), Any, r"range is no JSON value; use list\(x\)"),
    ],
    ids=lambda part: re.sub(r"0x\w+", "", repr(part))[:60],
)
def test_what_would_come_back_otherwise_is_refused_with_the_place_and_the_way_out(value, annotation, says):
    with pytest.raises(SerializationError, match=says) as refused:
        codec.encode(value, what="the result", annotation=annotation)
    assert "hunter2" not in str(refused.value)

    def takes(x): ...

    takes.__annotations__ = {"x": annotation}
    with pytest.raises(SerializationError, match=says):
        signature_of(takes).encode_payload((value,), {})


def test_an_attribute_that_is_no_field_is_refused_and_a_cached_one_is_not():
    extra = Event(1)
    extra.note = "x"
    with pytest.raises(
        SerializationError, match=r"its attribute 'note' is no field of .*Event and would be lost"
    ):
        there_and_back(extra, Event)
    caching = Caching(2)
    assert caching.double == 4
    assert there_and_back(caching, Caching) == caching


def test_a_field_that_equality_leaves_out_is_compared_too():
    value = Sized("abc")
    value.hidden = 5
    assert there_and_back(value, Sized).hidden == 5
    value.size = 99
    with pytest.raises(
        SerializationError, match="its field 'size' comes back as another value; does __post_init__"
    ):
        there_and_back(value, Sized)


def test_a_private_attribute_of_a_model_is_refused_unless_it_is_made_anew():
    value = Private(a=1)
    assert value.double == 2
    assert there_and_back(value, Private).a == 1
    value._token = "t"
    with pytest.raises(SerializationError, match=r"at \$\._token: a private attribute"):
        there_and_back(value, Private)


def test_a_secret_in_a_plain_message_is_refused_too(dsn):
    with pgqrs.connect(dsn) as store:
        if not store.config.embedded:
            store.install()
        with pytest.raises(
            SerializationError, match=r"the payload would not come back .*at \$\.a\.password: a secret"
        ):
            store.enqueue("q", {"a": Login(user="u", password="hunter2")})
        with pytest.raises(SerializationError, match="a secret"):
            store.trigger("by_name", Login(user="u", password="hunter2"))


def test_arguments_beyond_the_first_are_compared_by_name():
    def takes(a: int, *rest: Event, k: str = "k", **more: dt.datetime): ...

    signature = signature_of(takes)
    payload = signature.encode_payload((1, Event(2)), {"at": NOON})
    assert signature.decode_payload(payload) == ([1, Event(2)], {"at": NOON})
    assert signature.decode_payload(payload)[1]["at"].tzinfo is BERLIN
    with pytest.raises(
        SerializationError, match=r"argument 'rest' of takes\(\) would not .*at \$\[0\]: a .*Paid"
    ):
        signature.encode_payload((1, Paid(2)), {})
    with pytest.raises(SerializationError, match=r"argument 'k' of takes\(\) .*Markup"):
        signature.encode_payload((1,), {"k": Markup("a")})


def test_what_does_not_fit_is_told_before_what_changes():
    with pytest.raises(SerializationError, match="does not fit its annotation int"):
        codec.encode(Path("x"), what="the result", annotation=int)


def test_a_plain_result_is_not_read_back():
    # A wrong annotation of a plain result is its reader's to find, as it always was: reading back costs time.
    assert codec.encode("text", what="the result", annotation=int) == b'"text"'


# Nesting


def nested(depth, kind):
    value: Any = 1
    for _ in range(depth - 1):
        value = [value] if kind is list else {"k": value}
    return value


@pytest.mark.parametrize("kind", [list, dict])
def test_nesting_has_one_limit_on_every_python(kind):
    at_limit = nested(codec.NESTING_MAX + 1, kind)
    raw = codec.encode(at_limit, what="it")
    assert codec.decode(raw, Any, what="it") == at_limit
    assert codec.parse_json(raw, what="it") == raw
    assert codec.unwrap_input(b'{"input":1}') == b"1"
    over = nested(codec.NESTING_MAX + 2, kind)
    over_raw = json.dumps(over).encode()
    with pytest.raises(SerializationError, match="nested too deeply"):
        codec.encode(over, what="it")
    with pytest.raises(SerializationError, match="it is nested too deeply to be read: over 500 levels"):
        codec.decode(over_raw, Any, what="it")
    with pytest.raises(pgqrs.PgqrsError, match="it is nested too deeply: over 500 levels"):
        codec.parse_json(over_raw, what="it")
    with pytest.raises(SerializationError, match="payload is not"):
        codec.unwrap_input(b'{"input":' + over_raw + b"}")


def test_many_brackets_that_are_not_deep_are_no_nesting():
    wide = [[{"a": "[[{{", "b": [1]}] for _ in range(2000)]
    assert there_and_back(wide, Any) == wide
    text = ["[" * 5000, '"[\\"' * 500]
    assert there_and_back(text, Any) == text
