"""Every error can be raised with a message; any exception can be recorded, and raised again from its record."""

import builtins
import importlib
import inspect
import json
import pickle
import subprocess
import sys
import textwrap

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgqrs import errors
from pgqrs.errors import PgqrsError, StepError, TransientStepError, describe, rebuild

OURS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, PgqrsError)]

PUBLISHED = (
    "PgqrsConnectionError QueueNotFoundError WorkerNotFoundError QueueAlreadyExistsError MessageNotFoundError "
    "SerializationError ConfigError RateLimitedError ValidationError TimeoutError InternalError StateTransitionError "
    "TransientStepError RetriesExhaustedError StepNotReadyError PausedError"
)


class Plain(Exception):
    pass


class Formatting(Exception):
    def __init__(self, path):
        super().__init__(f"cannot read {path}")


class Demanding(Exception):
    def __init__(self, code, detail):
        super().__init__(f"{code}: {detail}")


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError("no")


class Outer:
    class Inner(Exception):
        pass


class Frozen(Exception):
    def __setattr__(self, name, value):
        raise AttributeError("frozen")


class OddlyNamed(Exception):
    pass


OddlyNamed.__qualname__ = "Odd\0"
OddlyNamed.__module__ = "half\ud800"


class Exiting(Exception):
    def __init__(self, *args):
        sys.exit(3)


def raised(exc):
    try:
        raise exc
    except BaseException as e:
        return e


def through_json(exc):
    return rebuild(json.loads(msgspec.json.encode(describe(exc))))


# The classes


@pytest.mark.parametrize("kind", OURS)
def test_each_of_ours_takes_one_message_and_any_attribute(kind):
    error = kind("the message")
    error.anything = 1
    assert str(error) == "the message"
    assert isinstance(error, PgqrsError)
    assert str(pickle.loads(pickle.dumps(error))) == "the message"


def test_the_published_ones_are_all_there():
    assert set(PUBLISHED.split()) <= {kind.__name__ for kind in OURS}


def test_our_timeout_is_python_s_too():
    with pytest.raises(builtins.TimeoutError):
        raise errors.TimeoutError("too late")


def test_a_transient_error_says_when_to_try_again():
    error = TransientStepError("busy")
    assert (error.code, error.retry_after) == (None, None)
    error.code, error.retry_after = "BUSY", 5
    described = describe(error)
    assert (described["code"], described["is_transient"], described["retry_after"]) == ("BUSY", True, 5.0)
    again = rebuild(described)
    assert (type(again), again.code, again.retry_after) == (TransientStepError, "BUSY", 5.0)


# Recording


def test_an_exception_is_recorded_with_type_message_and_where():
    described = describe(raised(Plain("went wrong")))
    assert described["code"] == "NON_RETRYABLE"
    assert described["is_transient"] is False
    assert described["type"] == f"{__name__}.Plain"
    assert described["message"] == "went wrong"
    assert described["args"] == ["went wrong"]
    assert "in raised" in described["traceback"]
    assert describe(Plain(), code="TIMEOUT")["code"] == "TIMEOUT"


def test_the_engine_s_frames_are_left_out_but_not_the_user_s():
    try:
        importlib.import_module("pgqrs_nowhere")
    except ImportError as e:
        outside = describe(e)["traceback"]
    assert "test_errors.py" in outside
    code = compile("def inner(f):\n    f()", errors.__file__, "exec")
    engine = {}
    exec(code, engine)
    try:
        engine["inner"](lambda: 1 / 0)
    except ZeroDivisionError as e:
        trace = describe(e)["traceback"]
    assert "test_errors.py" in trace
    assert "errors.py" not in trace.replace("test_errors.py", "")


def test_causes_are_recorded_too():
    try:
        try:
            raise Plain("the cause")
        except Plain as e:
            raise ValueError("the effect") from e
    except ValueError as e:
        trace = describe(e)["traceback"]
    assert "the cause" in trace
    assert "the effect" in trace


def test_what_json_or_jsonb_refuses_is_replaced():
    described = describe(raised(Plain("nul \0, half \ud800")))
    raw = msgspec.json.encode(described)
    assert b"\\u0000" not in raw
    assert described["message"] == "nul \u2400, half \ufffd"
    assert rebuild(described).args == ("nul \0, half \ud800",)


def test_args_that_contain_themselves_are_recorded_as_far_as_they_go():
    cycle = []
    cycle.append(cycle)
    assert len(json.dumps(describe(Plain(cycle)))) < 2000


def test_long_ones_are_cut_in_the_middle():
    described = describe(raised(Plain("begin " + "é" * 100_000 + " end")))
    assert len(described["message"].encode()) <= errors.MESSAGE_BYTES_MAX
    assert described["message"].startswith("begin é")
    assert described["message"].endswith("é end")
    assert "bytes left out" in described["message"]
    assert len(described["traceback"].encode()) <= errors.TRACEBACK_BYTES_MAX
    assert len(msgspec.json.encode(described)) < 40_000


def recurse_for_ever():
    recurse_for_ever()


@pytest.mark.parametrize(
    "exc",
    [
        Unprintable("x"),
        KeyboardInterrupt(),
        SystemExit(3),
        BaseExceptionGroup("many", [Plain("one"), KeyboardInterrupt()]),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        Frozen("x"),
        TransientStepError(code=object(), retry_after=float("nan")),
        OddlyNamed("x"),
    ],
    ids=lambda exc: ascii(type(exc).__name__),
)
def test_describing_never_raises_whatever_is_described(exc):
    assert b"\\u0000" not in msgspec.json.encode(describe(raised(exc)))
    assert isinstance(through_json(exc), Exception)


def test_a_recursion_error_can_be_described():
    with pytest.raises(RecursionError) as caught:
        recurse_for_ever()
    assert "recurse_for_ever" in describe(caught.value)["traceback"]


# Raising again


@pytest.mark.parametrize(
    "exc",
    [
        Plain("a", 1, None, [1.5], {"k": True}),
        Plain(),
        ValueError("bad value"),
        KeyError("missing"),
        FileNotFoundError(2, "No such file or directory", "/data/x"),
        Outer.Inner("nested"),
        Formatting("/data"),
        ZeroDivisionError("division by zero"),
        subprocess.CalledProcessError(3, ["false"]),
        errors.QueueNotFoundError("no queue"),
        errors.TimeoutError("too late"),
        Plain("x" * 10_000),
    ],
    ids=lambda exc: type(exc).__name__,
)
def test_the_same_type_with_the_same_message_is_raised_again(exc):
    again = through_json(raised(exc))
    assert type(again) is type(exc)
    assert str(again) == describe(exc)["message"]


def test_what_pickle_knows_beyond_args_comes_back():
    again = through_json(FileNotFoundError(2, "No such file or directory", "/data/x"))
    assert again.filename == "/data/x"
    with pytest.raises(json.JSONDecodeError) as caught:
        json.loads("[1,")
    again = through_json(caught.value)
    assert (type(again), again.pos, str(again)) == (json.JSONDecodeError, 3, str(caught.value))


def test_the_recorded_traceback_is_a_note():
    again = through_json(raised(Plain("x")))
    assert "in raised" in again.__notes__[0]


class Local:
    def make(self):
        class Hidden(Exception):
            pass

        return Hidden("hidden")


@pytest.mark.parametrize(
    "exc",
    [Local().make(), SystemExit(3), OddlyNamed("x")],
    ids=lambda exc: ascii(type(exc).__name__),
)
def test_what_cannot_be_built_again_becomes_a_step_error_that_says_the_same(exc):
    exc = raised(exc)
    again = through_json(exc)
    assert type(again) is StepError
    assert again.type == describe(exc)["type"]
    assert again.message == str(exc)
    assert str(again) == f"{again.type}: {again.message}"
    assert "in raised" in again.traceback
    assert again.traceback in again.__notes__[0]


def test_a_step_error_that_passes_through_a_workflow_keeps_its_first_type():
    once = describe(raised(Local().make()))
    twice = describe(raised(rebuild(once)))
    assert (twice["type"], twice["message"]) == (once["type"], once["message"])
    assert str(rebuild(twice)) == str(rebuild(once))


def test_a_step_error_of_the_user_s_own_comes_back():
    assert str(through_json(StepError("mine"))) == "mine"


@pytest.mark.parametrize(
    "kind",
    [
        "builtins.print",
        "builtins.KeyboardInterrupt",
        "os.system",
        "subprocess.Popen",
        "builtins.int",
        "json.tool.__main__.X",
    ],
)
def test_nothing_but_an_exception_class_is_called(kind):
    again = rebuild({"type": kind, "message": "m", "args": ["touch /tmp/never"]})
    assert type(again) is StepError
    assert again.type == kind


def test_no_init_is_called():
    again = rebuild({"type": f"{__name__}.Exiting", "message": "m", "args": ["m"]})
    assert (type(again), again.args) == (Exiting, ("m",))


def test_nothing_is_imported_for_a_name_in_the_database(tmp_path):
    (tmp_path / "wipe").mkdir()
    (tmp_path / "wipe" / "__init__.py").write_text("print('ran')\nclass Error(Exception): pass")
    (tmp_path / "wipe" / "__main__.py").write_text("print('ran')")
    # A module whose own __getattr__ imports, as lazy packages do.
    (tmp_path / "lazy.py").write_text("def __getattr__(name):\n    import wipe\n    return wipe.Error")
    script = """
        import importlib.util, lazy, sys
        spec = importlib.util.find_spec("wipe")
        loader = importlib.util.LazyLoader(spec.loader)
        from pgqrs.errors import rebuild

        def names(kind):
            return type(rebuild({"type": kind, "args": [], "bases": [kind]})).__name__
        kinds = "wipe.Error", "wipe.__main__.X", "lazy.Error", "wipe.sub.Error"
        found = {names(kind) for kind in kinds}
        enum = {"$": ["enum", ["wipe.Error", "X"]]}
        found.add(type(rebuild({"type": "builtins.ValueError", "args": [enum]}).args[0]).__name__)
        module = importlib.util.module_from_spec(spec)
        sys.modules["wipe"] = module
        loader.exec_module(module)
        found.add(names("wipe.Error"))
        print(*sorted(found))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={"PYTHONPATH": f"{tmp_path}:{errors.Path(errors.__file__).parent.parent}"},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "NotRecorded StepError\n", done.stderr


def test_what_0_15_recorded_can_be_raised():
    again = rebuild({"is_transient": True, "code": "BUSY", "message": "try later", "retry_after": 5})
    assert (type(again), str(again)) == (StepError, "try later")
    assert str(rebuild("just text")) == "just text"


def test_what_the_engine_records_without_args_is_built_from_its_message():
    again = rebuild({"code": "CRASHED", "type": "pgqrs.errors.WorkerCrashed", "message": "died 5 times"})
    assert (type(again), str(again)) == (errors.WorkerCrashed, "died 5 times")


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
kinds = st.sampled_from(
    [
        "builtins.ValueError",
        "builtins.OSError",
        "builtins.UnicodeDecodeError",
        f"{__name__}.Plain",
        ".",
        "a.",
        "..x",
    ]
)


@settings(max_examples=60, deadline=None)
@given(
    anything
    | st.fixed_dictionaries(
        {},
        optional={
            "type": kinds | anything,
            "message": anything,
            "args": anything,
            "traceback": anything,
            "code": anything,
        },
    )
)
def test_rebuilding_never_raises_whatever_is_recorded(recorded):
    again = rebuild(recorded)
    assert isinstance(again, Exception)
    describe(again)


@given(st.lists(st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.text()), max_size=4))
def test_plain_arguments_come_back_as_they_were(args):
    again = through_json(Plain(*args))
    assert type(again) is Plain
    assert list(again.args) == args
