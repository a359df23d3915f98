"""Fingerprints of arguments: the same for the same content, in every process, and another for other content."""

import array
import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import os
import subprocess
import sys
import uuid
import zoneinfo
from pathlib import Path, PurePosixPath

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgqrs.values.fingerprint import Fingerprints, folded

OF = Fingerprints(b"42").of


@dataclasses.dataclass
class Point:
    x: object
    y: int = 0


class Struct(msgspec.Struct):
    x: object


class Model(pydantic.BaseModel):
    x: int


class Colour(enum.Enum):
    RED = (1, 2)
    BLUE = object()


class Plain:
    def __init__(self, x):
        self.x = x


class Broken:
    def __getattribute__(self, name):
        raise RuntimeError(name)


class Odd:
    __module__ = property(lambda self: "elsewhere")


DIFFERENT = [
    1,
    1.0,
    True,
    None,
    "1",
    b"1x",
    2**80,
    -(2**80),
    1j,
    "a",
    "\ud800",
    [1],
    [[1]],
    {"a": 1},
    {1: "a"},
    {"a": {1: 2}},
    {(1, 2): 3},
    {1, 2},
    {1, "a"},
    {frozenset({1}), frozenset({2})},
    {frozenset({1}), frozenset({3})},
    Point(1),
    Point({frozenset()}),
    Struct(1),
    Model(x=1),
    Model(x=2),
    Colour.RED,
    Colour.BLUE,
    Path("a"),
    PurePosixPath("b"),
    range(3),
    range(4),
    slice(1, 2),
    collections.deque([1, 2]),
    array.array("i", [1]),
    array.array("i", [2]),
    fractions.Fraction(1, 2),
    fractions.Fraction(1, 3),
    decimal.Decimal("1.50"),
    uuid.UUID(int=1),
    datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
    datetime.date(2026, 1, 1),
    datetime.timedelta(seconds=1),
    zoneinfo.ZoneInfo("Europe/Paris"),
    ValueError("a"),
    ValueError("b"),
    ValueError,
    len,
    functools.partial(len, [1]),
    functools.partial(len, [2]),
]


def test_values_of_other_content_have_other_fingerprints():
    found = [OF((value,)) for value in DIFFERENT]
    assert len(set(found)) == len(DIFFERENT)


def test_a_value_has_the_same_fingerprint_every_time():
    assert [OF((value,)) for value in DIFFERENT] == [OF((value,)) for value in DIFFERENT]


def test_what_has_no_content_counts_by_its_type():
    assert OF((Plain(1),)) == OF((Plain(2),)) != OF((object(),))
    with open(os.devnull) as one, open(os.devnull) as other:
        assert OF((one,)) == OF((other,))
    assert OF(((x for x in "a"),)) == OF(((x for x in "b"),))


def test_the_order_of_a_sets_and_a_dicts_members_does_not_count():
    assert OF(({"a": 1, "b": 2},)) == OF(({"b": 2, "a": 1},))
    assert OF(({1: 1, "b": 2},)) == OF(({"b": 2, 1: 1},))
    assert OF(({1, "a", None},)) == OF(({None, "a", 1},))


def test_nothing_that_a_value_does_raises():
    endless = [1]
    endless.append(endless)
    deep = []
    for _ in range(5000):
        deep = [deep]
    for value in (endless, deep, Broken(), Odd(), [Broken()], {"a": Broken()}, {Broken}, memoryview(b"a")):
        assert isinstance(OF((value,)), int)


def test_each_run_has_fingerprints_of_its_own():
    assert Fingerprints(b"42").of((1,)) != Fingerprints(b"43").of((1,))


@given(
    st.tuples(
        st.integers(), st.text(), st.lists(st.one_of(st.none(), st.booleans(), st.floats(), st.binary()))
    )
)
def test_a_fingerprint_is_a_number_that_every_database_holds(arguments):
    assert -(2**63) <= OF(arguments) < 2**63


@pytest.mark.parametrize(
    ("args", "kwargs", "names", "same"),
    [
        ((1, 2), {}, ("a", "b"), (1, 2)),
        ((1,), {"b": 2}, ("a", "b"), (1, 2)),
        ((), {"b": 2, "a": 1}, ("a", "b"), (1, 2)),
        ((1,), {"c": 3}, ("a", "b", "c"), (1, {"c": 3})),
        ((1,), {"more": 3}, ("a",), (1, {"more": 3})),
        ((1,), {"a": 3}, (None,), (1, {"a": 3})),
    ],
)
def test_a_call_has_one_form_however_it_is_spelled(args, kwargs, names, same):
    assert folded(args, kwargs, names) == same


def test_numpy_values_count_by_their_content():
    numpy = pytest.importorskip("numpy")
    a, b = numpy.arange(6), numpy.arange(6)
    assert OF((a,)) == OF((b,))
    b[0] = 9
    assert (
        len({OF((a,)), OF((b,)), OF((a.astype("f8"),)), OF((a.reshape(2, 3),)), OF((numpy.int64(1),))}) == 5
    )


SCRIPT = """
import sys
from pathlib import Path
from pgqrs.values.fingerprint import Fingerprints
of = Fingerprints(b"42").of
print(of(({"alpha", "beta", "gamma"},)), of((frozenset({"a", 1}),)), of(({"k": {"alpha", "beta"}},)), of((Path("x"),)))
"""


def test_every_process_finds_the_same_whatever_its_hash_seed():
    said = {
        subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env=os.environ | {"PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(said) == 1
    # Written down, so that another version of Python or of a library cannot change them unseen.
    assert said.pop().split() == EXPECTED


EXPECTED = [
    "-9091079359568923162",
    "-1979442412077034682",
    "-3202440432194314649",
    "-6876967191674937664",
]
