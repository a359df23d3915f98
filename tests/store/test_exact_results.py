"""A step's result is read back as the step returned it, byte by byte: a replay takes the same way again."""

import msgspec
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgqrs.config import conninfo
from pgqrs.store.postgresql.jsonb import exact_text
from tests.store.given import failed_step, release, step, wrote

CHANGED = [
    b'{"zebra":1,"a":2}',
    b'{"b":1,"a":2}',
    b'[1,{"x":{"ab":1,"b":2}}]',
    b'{"\xc3\xa9":1,"zz":2,"a":3}',
    b"1e100",
    b"6.02e23",
    b"-0.0",
    b"[0.5,-0.0]",
]
KEPT = [
    b"null",
    b"1",
    b"-1.50",
    b'"{\\"zebra\\":1}"',
    b'{"a":1,"b":2,"aa":3}',
    b'[{"a":-0.5},{"b":[]}]',
    b'{"zz":1,"\xc3\xa9":2}',
]


@pytest.mark.parametrize("output", CHANGED + KEPT)
def test_a_replay_finds_a_result_as_it_was_returned(flow, output):
    claim = flow.begun()
    wrote(flow.store, step(claim, output=output))
    [shown] = flow.store.steps(claim.message_id)
    assert in_order(shown.output) == in_order(msgspec.json.decode(output))
    wrote(flow.store, release(claim))
    [recorded] = flow.again().steps
    if output in CHANGED:
        assert recorded.output == output
    assert in_order(msgspec.json.decode(recorded.output)) == in_order(msgspec.json.decode(output))


def in_order(value):
    """Every object as a list, so that its order counts, and every number with its type and sign."""
    if isinstance(value, dict):
        return [(k, in_order(v)) for k, v in value.items()]
    return [in_order(v) for v in value] if isinstance(value, list) else repr(value)


def test_a_result_after_a_retry_is_kept_exactly_too(flow):
    claim = flow.begun()
    wrote(flow.store, failed_step(claim))
    wrote(flow.store, step(claim, output=CHANGED[0]))
    wrote(flow.store, release(claim))
    assert flow.again().steps[0].output == CHANGED[0]


def test_text_is_kept_beside_jsonb_only_where_that_changes_it():
    assert [exact_text(raw, "postgres") for raw in CHANGED] == [raw.decode() for raw in CHANGED]
    assert [exact_text(raw, "postgres") for raw in KEPT] == [None] * len(KEPT)
    assert [exact_text(raw, "sqlite") for raw in CHANGED] == [None] * len(CHANGED)
    assert exact_text(None, "postgres") is None


@pytest.mark.parametrize("depth", [10, 500, 900, 940, 960, 980, 990, 2000])
def test_a_deeply_nested_value_is_looked_at_or_kept_whole(depth):
    raw = b"[" * depth + b'{"b":1,"a":2}' + b"]" * depth
    assert exact_text(raw, "postgres") == raw.decode()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=3), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@pytest.mark.postgres
def test_what_is_not_kept_beside_it_comes_back_from_jsonb_as_it_went_in(postgres_dsn):
    """By PostgreSQL itself, which knows best what its jsonb does."""
    with psycopg.connect(conninfo(postgres_dsn), autocommit=True) as connection:

        @settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(VALUES)
        def same(value):
            raw = msgspec.json.encode(value)
            if exact_text(raw, "postgres") is None:
                row = connection.execute("select cast(%s as jsonb)::text", (raw.decode(),)).fetchone()
                assert in_order(msgspec.json.decode(row[0])) == in_order(msgspec.json.decode(raw))

        same()
