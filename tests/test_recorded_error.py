"""One recorded error, written and read in one place, whoever wrote it."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgqrs import errors
from pgqrs.model.recorded_error import RecordedError


def test_what_is_written_is_read_and_can_be_built_again() -> None:
    told = RecordedError("TIMEOUT", "builtins.TimeoutError", "too long", True, "File x")
    read = RecordedError.read(told.encode())
    assert msgspec.structs.replace(read, whole=None) == told
    assert (read.name, read.line) == ("TimeoutError", "TimeoutError: too long")
    built = errors.rebuild(read.whole)
    assert type(built) is TimeoutError
    assert built.args == ("too long",)


def test_what_an_exception_is_described_as_is_read() -> None:
    told = RecordedError.read(errors.describe(ValueError("no")))
    assert (told.code, told.line, told.is_transient) == ("NON_RETRYABLE", "ValueError: no", False)


@pytest.mark.parametrize(
    ("told", "line"),
    [
        (b'"lunch"', "lunch"),
        (b"null", ""),
        (None, ""),
        ("text", "text"),
        (b'{"is_transient": false, "code": "X", "message": "of 0.15"}', "X: of 0.15"),
        (b"{", "{"),
        (b"\xff", "\ufffd"),
        (b'{"type": 7, "message": [1]}', "7: [1]"),
        (b"[" * 100_000, "[" * 100_000),
    ],
)
def test_what_others_have_written_is_read_too(told: object, line: str) -> None:
    assert RecordedError.read(told).line == line


@given(
    st.binary() | st.recursive(st.none() | st.text(), lambda x: st.dictionaries(st.text(), x) | st.lists(x))
)
def test_reading_never_raises(told: object) -> None:
    assert isinstance(RecordedError.read(told).line, str)
