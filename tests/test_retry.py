"""How often a step is tried again, and how long it waits before."""

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgqrs.errors import ValidationError
from pgqrs.flows.retry import BackoffStrategy, StepRetryPolicy, policy

chances = st.floats(0, 1, exclude_max=True)
middle = lambda: 0.5  # noqa: E731


def never():
    raise AssertionError("no randomness is needed here")


def test_a_policy_retries_three_times_unless_told_otherwise():
    assert StepRetryPolicy().max_attempts == 3
    assert StepRetryPolicy(5).max_attempts == 5


def test_a_number_of_retries_is_a_policy():
    assert policy(2) == StepRetryPolicy(max_attempts=2)
    assert policy(None) == policy(0) == StepRetryPolicy(max_attempts=0)
    given = StepRetryPolicy(7, BackoffStrategy.fixed(1))
    assert policy(given) is given


@pytest.mark.parametrize("junk", [-1, True, False, 1.5, "3", 10**9])
def test_what_is_no_number_of_retries_is_refused(junk):
    with pytest.raises(ValidationError, match="is no number of retries: give 0"):
        policy(junk)
    with pytest.raises(ValidationError):
        StepRetryPolicy(max_attempts=junk)


def test_what_is_no_back_off_is_refused():
    with pytest.raises(ValidationError, match=r"BackoffStrategy\.fixed"):
        StepRetryPolicy(3, 5)


@pytest.mark.parametrize("s", [0, 2.5, "10m"])
def test_a_fixed_back_off_is_the_same_each_time_and_may_be_none(s):
    delays = [BackoffStrategy.fixed(s).delay(attempt, never) for attempt in (1, 2, 50)]
    assert delays == [{"10m": 600.0}.get(s, s)] * 3


def test_an_exponential_back_off_doubles_up_to_its_maximum():
    backoff = BackoffStrategy.exponential(0.5, 3)
    assert [backoff.delay(attempt, never) for attempt in (1, 2, 3, 4, 5000)] == [0.5, 1, 2, 3, 3]


def test_the_default_back_off_is_exponential_from_one_second_to_sixty_with_jitter():
    plain = [StepRetryPolicy().delay(attempt, middle) for attempt in range(1, 9)]
    assert plain == [1, 2, 4, 8, 16, 32, 60, 60]
    assert StepRetryPolicy().delay(3, lambda: 0.0) == 3.0
    assert StepRetryPolicy().delay(3, lambda: 1.0) == 5.0


@given(st.integers(1, 10_000), chances)
def test_the_default_back_off_is_never_under_one_second_nor_over_sixty(attempt, chance):
    assert 1.0 <= StepRetryPolicy().delay(attempt, lambda: chance) <= 60.0


@given(chances)
def test_jitter_is_a_quarter_at_most(chance):
    backoff = BackoffStrategy.exponential_with_jitter(8, 1000)
    for attempt, whole in zip(range(1, 6), itertools.accumulate([8, 2, 2, 2, 2], int.__mul__), strict=True):
        assert 0.75 * whole <= backoff.delay(attempt, lambda: chance) <= 1.25 * whole


def test_jitter_spreads():
    backoff = BackoffStrategy.exponential_with_jitter(8, 1000)
    assert len({backoff.delay(2, iter([chance / 10]).__next__) for chance in range(10)}) == 10


def test_a_back_off_that_ends_before_it_begins_is_refused():
    with pytest.raises(ValidationError, match="begin at 10s and end at 1s"):
        BackoffStrategy.exponential(10, 1)


def test_policies_are_values():
    assert BackoffStrategy.fixed(1) == BackoffStrategy.fixed("1s")
    assert len({StepRetryPolicy(), StepRetryPolicy()}) == 1
    with pytest.raises(AttributeError):
        StepRetryPolicy().max_attempts = 1
    assert msgspec.structs.replace(StepRetryPolicy(), max_attempts=1) == StepRetryPolicy(1)
