"""An exception that a step raised is the same exception when a replay raises it: class, arguments, attributes, chain."""

import dataclasses
import datetime as dt
import decimal
import enum
import http
import inspect
import json
import pathlib
import subprocess
import sys
import textwrap
import types
import urllib.error
import uuid
import zoneinfo

import attrs
import msgspec
import numpy
import pydantic
import pytest

import pgqrs
from pgqrs import errors
from pgqrs.errors import StepError, describe, rebuild


class NoStock(Exception):
    def __init__(self, *, item, left=0):
        super().__init__(f"no {item}, {left} left")
        self.item = item
        self.left = left


class Refused(Exception):
    def __init__(self, code, text, retry_after=None):
        super().__init__(f"{code}: {text}")
        self.code = code
        self.retry_after = retry_after


class NeverCallsSuper(Exception):
    def __init__(self, code):
        self.code = code

    def __str__(self):
        return f"code {self.code}"


class DiskFull(OSError):
    def __init__(self, *, mount):
        super().__init__(28, "No space left on device", mount)
        self.mount = mount


class Slotted(Exception):
    __slots__ = ("code",)

    def __init__(self, code):
        super().__init__("slotted")
        self.code = code


class Frozen(Exception):
    def __init__(self, code):
        self.__dict__["code"] = code

    def __setattr__(self, name, value):
        raise AttributeError("frozen")


class OwnNew(Exception):
    def __new__(cls, *, name):
        return super().__new__(cls, name)

    def __init__(self, *, name):
        self.name = name


class OwnReduce(Exception):
    def __init__(self, a, b):
        super().__init__(f"{a}{b}")
        self.a, self.b = a, b

    def __reduce__(self):
        raise RuntimeError("not to be pickled")


class ReadOnly(Exception):
    @property
    def args(self):
        return ("from", "elsewhere")


class ClassAttribute(Exception):
    code = 42


class Outer:
    class Inner(ValueError):
        pass


@dataclasses.dataclass
class Data(Exception):
    code: int
    parts: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class FrozenData(Exception):
    code: int


@attrs.define
class Attr(Exception):
    code: int
    text: str = "t"


class Many(ExceptionGroup):
    def __new__(cls, text, parts, job):
        made = super().__new__(cls, text, parts)
        made.job = job
        return made

    def __init__(self, *_):
        pass

    def derive(self, parts):
        return Many(self.message, parts, self.job)


class Colour(enum.Enum):
    Red = "r"


class Level(enum.IntEnum):
    High = 3


def through_json(exc, function=None):
    return rebuild(json.loads(msgspec.json.encode(describe(exc))), function)


def raised(exc):
    try:
        raise exc
    except BaseException as e:
        return e


def from_call(call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except Exception as e:
        return e
    raise AssertionError("it did not raise")


def own(exc):
    return {k: v for k, v in vars(exc).items() if k != "__notes__"}


EXCEPTIONS = [
    NoStock(item="bolts", left=2),
    Refused(503, "busy", retry_after=1.5),
    Refused(1, "x", retry_after=dt.timedelta(seconds=3)),
    NeverCallsSuper(7),
    DiskFull(mount="/data"),
    Slotted(5),
    Frozen(5),
    OwnNew(name="n"),
    OwnReduce("a", "b"),
    ReadOnly("x"),
    ClassAttribute("x"),
    Outer.Inner("x"),
    Data(5, ("a", "b")),
    FrozenData(5),
    Attr(5, "x"),
    ValueError("a", 2, (3, [4]), {"k": {5}}),
    ValueError(b"bytes", bytearray(b"x"), frozenset({1})),
    ValueError({1: "a", (2, 3): None}, {"$": 1}),
    ValueError(-0.0, 1e23, 10**30, 1j),
    ValueError(dt.datetime(2024, 1, 1), dt.date(2024, 1, 1), dt.time(1, 2), dt.timedelta(1)),  # noqa: DTZ001
    ValueError(dt.datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin"))),
    ValueError(decimal.Decimal("1.10"), uuid.UUID(int=5), pathlib.Path("/x"), pathlib.PurePosixPath("y")),
    ValueError(Colour.Red, Level.High, http.HTTPStatus.NOT_FOUND),
    ValueError("nul \0 and half \ud800", "\\u0000"),
    KeyError("missing"),
    KeyError(("a", 1)),
    FileNotFoundError(2, "No such file or directory", "/data/x"),
    FileExistsError(17, "File exists", "a", None, "b"),
    OSError("just text"),
    ConnectionResetError(104, "Connection reset by peer"),
    subprocess.CalledProcessError(3, ["cp", pathlib.Path("a")], b"out\xff", b"err"),
    subprocess.TimeoutExpired(["sleep"], 5, output=b"partial"),
    UnicodeDecodeError("utf-8", b"abc\xff", 3, 4, "invalid start byte"),
    UnicodeEncodeError("ascii", "é", 0, 1, "ordinal not in range"),
    from_call(json.loads, "[1,"),
    from_call(int, "x"),
    from_call(compile, "1 +", "f.py", "eval"),
    from_call(__import__, "nowhere_at_all"),
    urllib.error.HTTPError("http://x", 404, "Not Found", None, None),
    StopIteration(5),
    pgqrs.errors.TimeoutError("too late"),
    pgqrs.TransientStepError("busy", code="BUSY", retry_after=dt.timedelta(seconds=2)),
    pgqrs.TransientStepError("busy"),
    errors.RunFailedError("m", run_id=5, error={"message": "m"}),
    Many("several", [ValueError(1)], "j"),
    ExceptionGroup("m", [ValueError(1), ExceptionGroup("n", [NoStock(item="x"), KeyError("k")])]),
]


@pytest.mark.parametrize("exc", EXCEPTIONS, ids=lambda exc: type(exc).__name__)
def test_an_exception_comes_back_with_its_class_arguments_and_attributes(exc):
    again = through_json(raised(exc))
    assert type(again) is type(exc)
    assert str(again) == str(exc)
    assert repr(again) == repr(exc)
    assert repr(again.args) == repr(exc.args)
    if not isinstance(exc, urllib.error.HTTPError):  # which holds an open file
        assert own(again) == own(exc)
    for name in (
        "errno",
        "strerror",
        "filename",
        "filename2",
        "name",
        "path",
        "lineno",
        "offset",
        "value",
        "code",
    ):
        assert getattr(again, name, None) == getattr(exc, name, None)


@pytest.mark.parametrize("exc", EXCEPTIONS, ids=lambda exc: type(exc).__name__)
def test_what_came_back_can_be_recorded_and_come_back_once_more(exc):
    once = through_json(raised(exc))
    twice = through_json(raised(once))
    assert type(twice) is type(exc)
    assert str(twice) == str(exc)
    assert repr(twice.args) == repr(exc.args)


def test_a_local_and_an_unknown_zone_s_moment_in_an_exception():
    zone = zoneinfo.ZoneInfo("Europe/Berlin")
    [again] = through_json(ValueError(dt.datetime(2024, 3, 30, 12, tzinfo=zone))).args
    assert again.tzinfo is zone


def test_the_members_of_a_group_come_back_as_they_were():
    group = ExceptionGroup("m", [NoStock(item="x"), ExceptionGroup("n", [KeyError("k"), OSError(2, "no")])])
    again = through_json(raised(group))
    assert [type(e) for e in again.exceptions] == [NoStock, ExceptionGroup]
    assert again.exceptions[0].item == "x"
    caught, _ = again.split(OSError)
    assert caught.exceptions[0].exceptions[0].errno == 2


def test_a_very_large_group_says_how_many_are_not_recorded():
    again = through_json(ExceptionGroup("m", [ValueError(n) for n in range(1000)]))
    assert len(again.exceptions) == errors.GROUP_MAX
    assert "900 more" in "".join(again.__notes__)


def test_causes_contexts_and_their_absence_come_back():
    def cause():
        try:
            raise NoStock(item="x")
        except NoStock as e:
            raise ValueError("effect") from e

    def context():
        try:
            raise KeyError("first")
        except KeyError:
            raise ValueError("second")  # noqa: B904

    def nothing():
        try:
            raise KeyError("secret")
        except KeyError:
            raise ValueError("second") from None

    again = through_json(from_call(cause))
    assert type(again.__cause__) is NoStock
    assert (again.__cause__.item, again.__context__, again.__suppress_context__) == (
        "x",
        again.__cause__,
        True,
    )
    again = through_json(from_call(context))
    assert (type(again.__context__), again.__cause__, again.__suppress_context__) == (KeyError, None, False)
    again = through_json(from_call(nothing))
    assert (again.__context__, again.__cause__, again.__suppress_context__) == (None, None, True)
    assert "secret" not in json.dumps(describe(from_call(nothing)))


def test_a_chain_that_contains_itself_ends():
    a, b = ValueError("a"), ValueError("b")
    a.__cause__, b.__cause__ = b, a
    again = through_json(a)
    assert str(again.__cause__) == "b"
    assert again.__cause__.__cause__ is None


def test_notes_come_back_before_the_recorded_traceback():
    exc = NoStock(item="x")
    exc.add_note("row 5")
    again = through_json(raised(exc))
    assert again.__notes__[0] == "row 5"
    assert "in raised" in again.__notes__[1]
    twice = through_json(raised(again))
    assert len(twice.__notes__) == 2


def test_an_exception_within_an_exception_comes_back():
    exc = ValueError("x")
    exc.orig = FileNotFoundError(2, "no", "/f")
    again = through_json(exc)
    assert type(again.orig) is FileNotFoundError
    assert again.orig.filename == "/f"


def test_numpy_numbers_in_an_exception_are_numbers():
    exc = ValueError(numpy.float64(1.5))
    exc.code = numpy.int64(7)
    again = through_json(exc)
    assert (again.args, again.code, type(again.code)) == ((1.5,), 7, int)


# What cannot be recorded


class Response:
    status_code = 500

    def __repr__(self):
        return "<Response [500]>"


def test_what_is_not_recorded_shows_what_it_was_and_refuses_any_other_use():
    exc = NoStock(item=Response())
    again = through_json(raised(exc))
    assert type(again) is NoStock
    assert repr(again.item) == "<Response [500]>"
    with pytest.raises(
        AttributeError, match=r"'status_code' is not known: this part .* was a .*Response, .*as text"
    ):
        assert again.item.status_code
    assert getattr(again.item, "status_code", None) is None
    with pytest.raises(TypeError, match="not recorded"):
        assert again.item
    assert repr(through_json(raised(again)).item) == "<Response [500]>"


@pytest.mark.parametrize(
    "arg", [object(), 10**5000, types.SimpleNamespace(a=1), (n for n in ()), print, Response],
    ids=lambda arg: type(arg).__name__,
)  # fmt: skip
def test_an_argument_that_is_not_recorded_leaves_class_and_message_as_they_were(arg):
    again = through_json(NoStock(item="x"))
    exc = ValueError("message", arg)
    again = through_json(exc)
    assert type(again) is ValueError
    assert again.args[0] == "message"
    if type(arg) is not int:
        assert str(again) == str(exc)


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError("no")


def test_a_message_that_cannot_be_shown_fails_again_in_the_same_way():
    again = through_json(raised(Unprintable("x")))
    assert (type(again), again.args) == (Unprintable, ("x",))


def test_long_texts_and_bytes_are_cut_and_the_whole_is_bounded():
    exc = subprocess.CalledProcessError(1, "x" * 100_000, b"o" * 100_000, b"e" * 100_000)
    exc.more = ["z" * 4000] * 100
    raw = msgspec.json.encode(describe(exc))
    assert len(raw) < 60_000
    again = rebuild(json.loads(raw))
    assert (type(again), again.returncode) == (subprocess.CalledProcessError, 1)
    assert b"bytes left out" in again.stdout
    assert again.stdout.startswith(b"ooo")
    assert (
        len(msgspec.json.encode(describe(UnicodeDecodeError("utf-8", b"\xff" * 10**6, 0, 1, "x")))) < 30_000
    )


def test_a_huge_container_is_not_walked():
    assert len(json.dumps(describe(ValueError(list(range(10**6)))))) < 30_000


# A class that is not found


def make_hidden(base):
    class Hidden(base):
        pass

    return Hidden


def test_a_class_inside_a_function_comes_back_as_its_nearest_base_and_a_step_error_that_says_why():
    again = through_json(raised(make_hidden(Refused)(503, "busy", 2)))
    assert isinstance(again, StepError)
    assert isinstance(again, Refused)
    assert (again.code, again.retry_after) == (503, 2)
    assert str(again) == f"{__name__}.make_hidden.<locals>.Hidden: 503: busy"
    assert "defined inside a function. Define it at the top of a module" in again.__notes__[-1]
    assert isinstance(through_json(raised(again)), Refused)


def test_a_class_of_a_module_that_is_not_loaded_comes_back_as_its_nearest_base():
    told = describe(DiskFull(mount="/data")) | {"type": "not_loaded.DiskFull"}
    told["bases"] = ["not_loaded.Base", "builtins.OSError"]
    again = rebuild(told)
    assert isinstance(again, StepError)
    assert isinstance(again, OSError)
    assert (again.errno, again.mount, again.type) == (28, "/data", "not_loaded.DiskFull")
    assert "not among the modules that are loaded here" in again.__notes__[-1]


def test_a_pydantic_error_which_only_pydantic_can_make_is_a_value_error_still():
    class Model(pydantic.BaseModel):
        n: int

    exc = from_call(Model, n="x")
    again = through_json(exc)
    assert isinstance(again, StepError)
    assert isinstance(again, ValueError)
    assert "valid integer" in str(again)


SCRIPT = """
    import pgqrs, sys
    from pgqrs.errors import describe, rebuild

    class NoStock(Exception):
        class Inner(Exception): pass

    def step(): ...

    if __name__ == "__main__":
        print(type(rebuild(describe(NoStock()))) is NoStock, type(rebuild(describe(NoStock.Inner()))) is NoStock.Inner)
        # A supervisor had imported this file by its stem.
        print(type(rebuild({"type": "shop.NoStock", "args": []})) is NoStock)
"""


def test_a_class_of_the_script_itself_is_found(tmp_path):
    (tmp_path / "shop.py").write_text(textwrap.dedent(SCRIPT))
    root = pathlib.Path(errors.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "shop.py"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "True True\nTrue\n", done.stderr


def test_a_class_of_a_script_is_found_beside_the_function_that_raised_it(tmp_path):
    # As a worker has it: its own __main__ is another program, and the function brought its globals along.
    namespace = {"__name__": "__main__"}
    exec(
        "class NoStock(Exception): pass\nfrom subprocess import CalledProcessError\ndef step(): ...",
        namespace,
    )
    step, kind = namespace["step"], namespace["NoStock"]
    told = describe(kind("x"))
    assert told["type"] == "__main__.NoStock"
    assert type(rebuild(told)) is StepError
    assert type(rebuild(told, step)) is kind
    assert type(rebuild(told, inspect.unwrap(pgqrs.step(step)))) is kind
    assert type(rebuild({"type": "__main__.CalledProcessError", "args": []}, step)) is StepError


def test_a_class_that_is_only_imported_lazily_is_not_looked_for_in_a_module_s_getattr(monkeypatch):
    asked = []
    module = types.ModuleType("pgqrs_test_lazy")
    module.__getattr__ = asked.append
    monkeypatch.setitem(sys.modules, "pgqrs_test_lazy", module)
    assert type(rebuild({"type": "pgqrs_test_lazy.Error", "args": []})) is StepError
    assert asked == []


@pytest.mark.parametrize(
    "told",
    [
        {"type": "builtins.ValueError", "args": [{"$": ["enum", ["os.system", "x"]]}]},
        {"type": "builtins.ValueError", "args": [{"$": ["unknown", 1]}]},
        {"type": "builtins.ValueError", "args": [{"$": 5}]},
        {"type": "builtins.ValueError", "args": [{"$": ["error", {"type": "os.system", "args": ["ls"]}]}]},
        {"type": "builtins.ValueError", "args": [], "state": {"__class__": 5, "args": 7}},
        {"type": "builtins.ValueError", "args": [], "state": 5, "notes": 5, "bases": 5, "cause": 5},
        {"type": "builtins.UnicodeDecodeError", "args": ["x"], "bases": ["builtins.ValueError"]},
        {"type": "builtins.ExceptionGroup", "args": ["x"], "exceptions": []},
        {"type": "builtins.ExceptionGroup", "args": [], "exceptions": [5, None]},
        {"type": "builtins.BaseException", "args": []},
    ],
    ids=str,
)
def test_a_forged_record_makes_an_exception_and_nothing_else(told):
    assert isinstance(rebuild(told), Exception)


def test_a_chain_without_end_in_a_record_is_cut():
    told = {"type": "builtins.ValueError", "args": []}
    for _ in range(300):
        told = {"type": "builtins.ValueError", "args": [{"$": ["error", told]}], "cause": told}
    assert isinstance(rebuild(told), ValueError)
