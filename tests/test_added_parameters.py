"""A queued run goes on with the default of a parameter that its function has got since, as a Python caller's call would."""

import dataclasses
import inspect
import json
from pathlib import Path
from typing import Any

import pytest

import pgqrs
from pgqrs.errors import SerializationError, ValidationError
from pgqrs.values import codec
from pgqrs.values.signature import signature_of


@dataclasses.dataclass
class Job:
    dry_run: int = 0


# What was triggered, and what it is now.


def none_before(): ...
def one_before(d: Any): ...
def job_before(d: Job): ...
def keyword_before(*, d: Any): ...
def two_before(a: int, b: int): ...
def kwargs_before(**more: int): ...


def none_now(dry_run: bool | None = True): ...
def none_now_two(dry_run: bool = False, *, force: bool = False): ...
def one_now(d: Any, dry_run: bool = False): ...
def one_now_renamed(data: Any, dry_run: bool = False): ...
def one_now_args(d: Any, *rest: int, dry_run: bool = False): ...
def one_now_kwargs(d: Any, **more: int): ...
def job_now(d: Job, dry_run: bool = False): ...
def keyword_now(*, d: Any, dry_run: bool = False): ...
def only_args_now(*items: Any): ...
def two_now(a: int, b: int, c: int = 0): ...
def one_instead_of_two(a: int): ...
def kwargs_now(a: int = 1, **more: int): ...


CALLS = [
    (none_before, (), none_now, {"dry_run": True}),
    (none_before, (), none_now_two, {"dry_run": False, "force": False}),
    (one_before, (1,), one_now, {"d": 1, "dry_run": False}),
    (one_before, ([1],), one_now, {"d": [1], "dry_run": False}),
    (one_before, ("null",), one_now, {"d": "null", "dry_run": False}),
    (one_before, (None,), one_now, {"d": None, "dry_run": False}),
    (one_before, ({"d": 1},), one_now, {"d": {"d": 1}, "dry_run": False}),
    (one_before, ({"d": 1, "dry_run": True},), one_now, {"d": {"d": 1, "dry_run": True}, "dry_run": False}),
    (one_before, ({"a": 1},), one_now, {"d": {"a": 1}, "dry_run": False}),
    (one_before, ({},), one_now_renamed, {"data": {}, "dry_run": False}),
    (one_before, ({"d": 1},), one_now_args, {"d": {"d": 1}, "rest": (), "dry_run": False}),
    (one_before, ({"d": 1},), one_now_kwargs, {"d": {"d": 1}, "more": {}}),
    (one_before, (5,), only_args_now, {"items": (5,)}),
    (job_before, (Job(1),), job_now, {"d": Job(1), "dry_run": False}),
    (two_before, (1, 2), two_now, {"a": 1, "b": 2, "c": 0}),
]


@pytest.mark.parametrize("before,args,now,expected", CALLS, ids=lambda part: getattr(part, "__name__", ""))
def test_a_stored_call_is_the_same_call_of_the_function_that_has_got_a_parameter(before, args, now, expected):
    payload = signature_of(before).encode_payload(args, {})
    signature = signature_of(now)
    assert called(now, *signature.decode_payload(payload)) == expected
    assert called(before, *signature_of(before).decode_payload(payload)) == called(before, args, {})


def called(function, args, kwargs):
    bound = inspect.signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments


def test_a_keyword_stays_a_keyword():
    payload = signature_of(keyword_before).encode_payload((), {"d": {"d": 1}})
    assert signature_of(keyword_now).decode_payload(payload) == ([], {"d": {"d": 1}})


def test_a_value_that_can_only_be_the_argument_itself_is_stored_as_0_15_stores_it():
    assert signature_of(one_before).encode_payload((5,), {}) == b'{"input":5}'
    assert signature_of(one_before).encode_payload(("{",), {}) == b'{"input":"{"}'
    assert json.loads(signature_of(one_before).encode_payload(({"a": 1},), {})) == {
        "input": {"a": 1},
        "pgqrs_bound": "alone",
    }


def test_what_0_15_or_an_earlier_version_stored_is_read_as_before():
    assert signature_of(two_now).decode_payload(b'{"input":{"a":1,"b":2}}') == ([], {"a": 1, "b": 2})
    assert signature_of(one_before).decode_payload(b'{"input":{"a":1}}') == ([{"a": 1}], {})
    assert signature_of(one_now).decode_payload(b'{"input":{"d":1}}') == ([], {"d": 1})
    assert signature_of(one_now).decode_payload(b'{"input":7}') == ([], {"d": 7})
    assert signature_of(none_before).decode_payload(b'{"input":null}') == ([], {})
    for strange in (b"5", b"null", b'"other"', b'["alone"]'):
        payload = b'{"input":{"d":1},"pgqrs_bound":' + strange + b"}"
        assert signature_of(one_now).decode_payload(payload) == ([], {"d": 1})


@pytest.mark.parametrize(
    "before,args,now,error,says",
    [
        (
            two_before,
            (1, 2),
            one_instead_of_two,
            ValidationError,
            r"one_instead_of_two\(\) has no parameter 'b'",
        ),
        (one_before, ({"a": 1},), two_before, ValidationError, r"two_before\(\) is missing its argument 'b'"),
        (none_before, (), one_before, ValidationError, r"one_before\(\) is missing its argument 'd'"),
        (
            one_before,
            ({"a": 1},),
            kwargs_before,
            ValidationError,
            r"kwargs_before\(\) takes no argument by position",
        ),
        (one_before, ({"a": 1},), none_before, ValidationError, r"none_before\(\) has no parameter 'a'"),
        (one_before, ([1],), none_before, SerializationError, "must be null: it takes no arguments"),
    ],
    ids=lambda part: getattr(part, "__name__", ""),
)
def test_a_call_that_the_function_no_longer_takes_is_refused_by_name(before, args, now, error, says):
    payload = signature_of(before).encode_payload(args, {})
    with pytest.raises(error, match=says):
        signature_of(now).decode_payload(payload)


def test_a_parameter_that_is_gone_leaves_the_others_by_name():
    payload = signature_of(two_now).encode_payload((), {"a": 1, "b": 2})
    assert json.loads(payload)["pgqrs_bound"] == codec.BY_NAME
    assert signature_of(two_before).decode_payload(payload) == ([], {"a": 1, "b": 2})


def test_how_an_input_was_bound_is_shown_nowhere(dsn):
    @pgqrs.workflow
    def takes(d: dict[str, int]): ...

    with pgqrs.connect(dsn) as store:
        if not store.config.embedded:
            store.install()
        handle = store.trigger(takes, {"d": 1})
        assert handle.record().input == {"d": 1}
        assert store.runs("takes")[0].input == {"d": 1}
        consumer = store.consumer("takes")
        [message] = consumer.dequeue()
        assert message.payload == {"d": 1}
        run = pgqrs.run().message(message).store(store).execute()
        assert run.input == {"input": {"d": 1}}


def test_a_plain_message_keeps_what_is_in_it(dsn):
    with pgqrs.connect(dsn) as store:
        if not store.config.embedded:
            store.install()
        for payload in (
            {"input": 1, "bound": "x"},
            {"pgqrs_bound": 1},
            {"input": 1, "pgqrs_bound": 2, "z": 3},
        ):
            store.enqueue("plain", payload)
            [message] = store.consumer("plain").dequeue()
            assert message.payload == payload


def test_a_path_is_given_as_before(tmp_path):
    def archive(folder: Path, dry_run: bool = False): ...

    assert signature_of(archive).decode_payload(b'{"input":"/data"}') == ([], {"folder": Path("/data")})
