"""What the database refuses for a reason that is no value's fault, such as a missing privilege,
hurts no run: the turn is repeated."""

import pytest

from pgqrs import errors
from tests.store.given import QUEUED, RUNNING, columns, execute, finish, ids, step, wrote

pytestmark = pytest.mark.fast_on("postgres")

# What keeps an insert of a step from being carried out, and what allows it again; no client of the
# tests' is a superuser's equal here.
DENY = {
    "postgres": (
        "create function deny() returns trigger language plpgsql as "
        "$$ begin raise insufficient_privilege using message = 'permission denied for table pgqrs_workflow_steps'; end $$",
        "create trigger deny before insert on pgqrs_workflow_steps for each row execute function deny()",
    ),
}
ALLOW = ("drop trigger deny on pgqrs_workflow_steps", "drop function deny")
POSTGRES_ONLY = True


@pytest.fixture
def denied(flow, dsn):
    claim = flow.begun()
    for statement in DENY["postgres"]:
        execute(dsn, statement)
    yield claim
    for statement in ALLOW:
        execute(dsn, statement)


def test_a_turn_that_is_refused_is_raised_and_writes_nothing(flow, denied, dsn):
    [other] = flow.trigger()
    writes = [step(denied), finish(denied)]
    with pytest.raises(errors.DatabaseError, match=r"permission denied .* pgqrs verify") as refused:
        flow.store.turn(writes, [flow.consumer.wanted()])
    assert not refused.value.refuses_value
    assert flow.store.run(denied.message_id).status == RUNNING
    assert columns(dsn, "pgqrs_workflow_steps", "id") == []
    assert columns(dsn, "pgqrs_messages", "id", "consumer_worker_id is null") == [(other,)]
    assert flow.store.run(other).status == QUEUED


def test_beside_a_bad_value_nobody_is_charged_for_it(flow, denied, dsn):
    """The write of the bad value is found out alone, and there the privilege is missing."""
    with pytest.raises(errors.DatabaseError) as refused:
        flow.store.turn([step(denied), step(denied, "n" * 300, 1)])
    assert not refused.value.refuses_value


def test_once_it_is_allowed_again_the_same_turn_goes_through(flow, dsn):
    claim = flow.begun()
    for statement in DENY["postgres"]:
        execute(dsn, statement)
    writes = [step(claim), finish(claim)]
    with pytest.raises(errors.DatabaseError):
        flow.store.turn(writes)
    for statement in ALLOW:
        execute(dsn, statement)
    assert [o.applied for o in flow.store.turn(writes, unsure=True).outcomes] == [True, True]
    assert [s.step_name for s in flow.store.steps(claim.message_id)] == ["a"]


@pytest.mark.parametrize("state", ["22012", "23514", "54000"])
def test_classes_of_values_are_refusals_of_the_write(state, flow, dsn):
    claim = flow.begun()
    execute(
        dsn,
        "create function deny() returns trigger language plpgsql as "
        f"$$ begin raise exception using errcode = '{state}', message = 'no'; end $$",
    )
    execute(dsn, DENY["postgres"][1])
    try:
        outcome = wrote(flow.store, step(claim))
        assert (outcome.applied, "no" in outcome.failure) == (False, True)
    finally:
        for statement in ALLOW:
            execute(dsn, statement)


def test_a_claim_that_is_refused_is_raised(flow, dsn):
    waiting = flow.trigger()
    execute(dsn, DENY["postgres"][0])
    execute(dsn, "create trigger deny before update on pgqrs_messages for each row execute function deny()")
    try:
        with pytest.raises(errors.DatabaseError) as refused:
            flow.consumer.claim()
        assert not refused.value.refuses_value
    finally:
        execute(dsn, "drop trigger deny on pgqrs_messages")
        execute(dsn, "drop function deny")
    assert ids(flow.consumer.claim()) == waiting
