"""Durations are seconds, a timedelta, or text that people write."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgqrs.arguments import durations
from pgqrs.errors import ValidationError


@pytest.mark.parametrize(
    "written,seconds",
    [
        (0, 0),
        (90, 90),
        (1.5, 1.5),
        (timedelta(minutes=2), 120),
        ("10m", 600),
        ("1h30m", 5400),
        ("1h 30m", 5400),
        ("500ms", 0.5),
        ("2 days", 172_800),
        ("1.5s", 1.5),
        ("1 week, 2 days", 777_600),
        ("  3 Hours ", 10_800),
        ("90", 90),
        ("0", 0),
    ],
)
def test_what_people_write_is_read(written, seconds):
    assert durations.seconds(written) == seconds
    assert type(durations.seconds(written)) is float


@pytest.mark.parametrize(
    "junk",
    [
        -1,
        -0.001,
        timedelta(seconds=-1),
        float("nan"),
        float("inf"),
        10**400,
        True,
        None,
        [],
        "",
        " ",
        "soon",
        "-5s",
        "5 parsecs",
        "5m!",
        "m5",
        "1e3s",
        "nan",
        "inf",
        "9" * 400,
        "٣s",
        "1000 years",
    ],
)
def test_anything_else_is_refused_with_what_is_accepted(junk):
    with pytest.raises(ValidationError, match=r'give seconds .*timedelta.*"10m"'):
        durations.seconds(junk)


def test_a_refusal_shows_what_was_given_in_brief():
    with pytest.raises(ValidationError, match=r"^'soon' is no duration"):
        durations.seconds("soon")
    with pytest.raises(ValidationError) as refused:
        durations.seconds("x" * 10_000)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    "seconds,text",
    [
        (0, "0s"),
        (0.00025, "0.25ms"),
        (0.25, "250ms"),
        (0.9994, "999ms"),
        (0.9999, "1s"),
        (1.5, "1.5s"),
        (59.99, "1m"),
        (90, "1m 30s"),
        (3600, "1h"),
        (5400, "1h 30m"),
        (5399.9, "1h 30m"),
        (3661, "1h 1m"),
        (172_800, "2d"),
        (-5, "-5s"),
        (float("inf"), "infs"),
    ],
)
def test_people_read_the_two_largest_units(seconds, text):
    assert durations.text(seconds) == text


@given(st.floats(0, durations.DURATION_S_MAX))
def test_what_is_shown_can_be_read_again_and_is_near(seconds):
    shown = durations.seconds(durations.text(seconds))
    assert shown == pytest.approx(seconds, rel=0.06, abs=1e-6)
