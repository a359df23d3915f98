"""What the database hands out: records with the fields of 0.15, enums that are shown, compared and counted as they were there."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pgqrs
from pgqrs import BackoffStrategy, StepRetryPolicy
from tests.surface.given import a_held_message, a_pair, a_run, at, moment

pytestmark = pytest.mark.backends("sqlite", "postgres")

PUBLISHED = {
    "QueueMessage": "id queue_id payload vt enqueued_at read_ct dequeued_at producer_worker_id consumer_worker_id archived_at",
    "QueueInfo": "id queue_name",
    "WorkerInfo": "id name status queue_id heartbeat_at",
    "WorkflowRecord": "id name queue_id",
    "RunRecord": "id workflow_id message_id status input output error created_at updated_at",
    "StepRecord": "id run_id step_name status input output error retry_at created_at updated_at",
}


async def the_records(store):
    """One of each kind, as the store hands it out."""
    consumer, message = await a_held_message(store, {"n": 1})
    run = await a_run(store, {"n": 1})
    await (await run.acquire_step("a", at(0))).guard.fail_transient("CODE", "text", 30)
    await consumer.archive(message.id)
    [archived] = await (await store.get_messages()).list_archived_by_queue(message.queue_id)
    return {
        "QueueMessage": archived,
        "QueueInfo": (await (await store.get_queues()).list())[0],
        "WorkerInfo": await (await store.get_workers()).get(consumer.worker_id),
        "WorkflowRecord": await (await store.get_workflows()).get_by_name("job"),
        "RunRecord": (await (await store.get_workflow_runs()).list())[0],
        "StepRecord": (await (await store.get_workflow_steps()).list())[0],
    }


async def test_each_record_has_the_published_fields_in_their_order(store):
    for kind, record in (await the_records(store)).items():
        assert type(record) is getattr(pgqrs, kind)
        assert list(record.__struct_fields__)[: len(PUBLISHED[kind].split())] == PUBLISHED[kind].split()


async def test_times_are_iso_8601_text_in_utc(store):
    for record in (await the_records(store)).values():
        for field in record.__struct_fields__:
            value = getattr(record, field)
            if field in ("vt", "retry_at") or (field.endswith("_at") and value is not None):
                assert isinstance(value, str)
                assert moment(value).utcoffset().total_seconds() == 0


async def test_records_do_not_change(store):
    for record in (await the_records(store)).values():
        with pytest.raises(AttributeError):
            record.id = 5


async def test_records_are_shown_with_their_fields(store):
    records = await the_records(store)
    assert repr(records["QueueInfo"]) == "QueueInfo(id=1, queue_name='tasks')"
    assert "payload={'n': 1}" in repr(records["QueueMessage"])
    assert "status=WorkerStatus.Ready" in repr(records["WorkerInfo"])


async def test_the_published_ones_are_made_from_their_fields_alone():
    message = pgqrs.QueueMessage(1, 2, {"a": 1}, None, None, 0, None, None, None, None)
    assert (message.id, message.queue_id, message.payload) == (1, 2, {"a": 1})
    assert pgqrs.QueueInfo(1, "tasks") == pgqrs.QueueInfo(id=1, queue_name="tasks")
    assert pgqrs.WorkerInfo(1, "w", pgqrs.WorkerStatus.Ready, None, None).status is pgqrs.WorkerStatus.Ready


# Enums

ENUMS = {
    "WorkerStatus": ["Ready", "Polling", "Suspended", "Interrupted", "Stopped"],
    "WorkflowStatus": ["Queued", "Running", "Paused", "Success", "Error", "Cancelling", "Cancelled"],
    "StepResultStatus": ["Execute", "Skipped"],
    "DurabilityMode": ["Durable", "Local"],
    "SyncState": [
        "LocalMissing",
        "RemoteMissingClean",
        "RemoteMissingDirty",
        "InSync",
        "LocalChanges",
        "RemoteChanges",
        "ConcurrentChanges",
    ],
}
MEMBERS = [(kind, name, number) for kind, names in ENUMS.items() for number, name in enumerate(names)]


@pytest.mark.parametrize("kind", ENUMS)
def test_an_enum_has_these_members(kind):
    assert [m.name for m in getattr(pgqrs, kind)] == ENUMS[kind]


@pytest.mark.parametrize("kind,name,number", MEMBERS, ids=[f"{k}.{n}" for k, n, _ in MEMBERS])
def test_a_member_is_shown_by_its_name_and_counted_by_its_place(kind, name, number):
    member = getattr(getattr(pgqrs, kind), name)
    assert repr(member) == str(member) == f"{member}" == f"{kind}.{name}"
    assert int(member) == number
    assert member == number
    assert member != number + 1
    assert {member: 1}[member] == 1


def test_run_states_are_stored_upper_case_and_worker_states_lower():
    assert [s.value for s in pgqrs.WorkflowStatus] == [n.upper() for n in ENUMS["WorkflowStatus"]]
    assert [s.value for s in pgqrs.WorkerStatus] == [n.lower() for n in ENUMS["WorkerStatus"]]


def test_members_of_different_enums_differ():
    assert pgqrs.WorkerStatus.Ready != pgqrs.WorkflowStatus.Queued
    assert pgqrs.WorkflowStatus.Success != pgqrs.WorkflowStatus.Error
    assert pgqrs.WorkerStatus.Ready in {pgqrs.WorkerStatus.Ready}
    assert pgqrs.WorkerStatus.Ready not in {pgqrs.WorkerStatus.Stopped}


def test_a_member_is_json_as_it_is_stored():
    assert json.dumps(pgqrs.WorkflowStatus.Success) == '"SUCCESS"'


async def test_the_store_hands_out_members(store):
    _, consumer = await a_pair(store)
    assert await consumer.status() is pgqrs.WorkerStatus.Ready
    run = await a_run(store)
    assert run.status is pgqrs.WorkflowStatus.Queued


# Retries


def test_a_policy_is_three_attempts_and_a_back_off():
    assert StepRetryPolicy().max_attempts == 3
    assert StepRetryPolicy().backoff is None
    assert StepRetryPolicy(max_attempts=5, backoff=BackoffStrategy.fixed(2)).backoff == BackoffStrategy.fixed(
        2
    )
    assert StepRetryPolicy(1, BackoffStrategy.fixed(2)).max_attempts == 1


@pytest.mark.parametrize("count", [-1, 1.5, "3", None, True])
def test_a_policy_s_attempts_are_a_whole_number(count):
    with pytest.raises(pgqrs.ValidationError, match="number of retries"):
        StepRetryPolicy(max_attempts=count)


@given(st.floats(0, 1000), st.integers(1, 100), st.floats(0, 1))
def test_a_fixed_back_off_is_always_the_same(seconds, attempt, chance):
    assert BackoffStrategy.fixed(seconds).delay(attempt, lambda: chance) == seconds


@pytest.mark.parametrize("attempt,seconds", [(1, 2), (2, 4), (3, 8), (4, 10), (5, 10), (10_000, 10)])
def test_an_exponential_one_doubles_up_to_its_maximum(attempt, seconds):
    assert BackoffStrategy.exponential(2, 10).delay(attempt, lambda: 0.5) == seconds


@given(st.integers(1, 200), st.floats(0, 1))
def test_jitter_is_a_quarter_either_way_and_never_under_a_second_nor_over_the_maximum(attempt, chance):
    plain = BackoffStrategy.exponential(3, 60).delay(attempt, lambda: chance)
    jittered = BackoffStrategy.exponential_with_jitter(3, 60).delay(attempt, lambda: chance)
    assert max(1, plain * 0.75) - 1e-9 <= jittered <= min(60, plain * 1.25) + 1e-9


@pytest.mark.parametrize("chance,seconds", [(0.0, 6.0), (0.5, 8.0), (1.0, 10.0)])
def test_jitter_reaches_its_bounds(chance, seconds):
    assert BackoffStrategy.exponential_with_jitter(8, 60).delay(1, lambda: chance) == pytest.approx(seconds)


@given(st.integers(1, 50), st.floats(0, 1))
def test_the_default_is_jitter_from_one_second_to_sixty(attempt, chance):
    assert StepRetryPolicy().delay(attempt, lambda: chance) == BackoffStrategy.exponential_with_jitter(
        1, 60
    ).delay(attempt, lambda: chance)
    assert BackoffStrategy.exponential_with_jitter() == BackoffStrategy.exponential_with_jitter(1, 60)


def test_back_offs_are_shown_as_they_were():
    assert repr(BackoffStrategy.fixed(5)) == "Fixed { delay_seconds: 5 }"
    assert repr(BackoffStrategy.exponential(1, 60)) == "Exponential { base_seconds: 1, max_seconds: 60 }"
    assert (
        repr(BackoffStrategy.exponential_with_jitter(1, 60))
        == "ExponentialWithJitter { base_seconds: 1, max_seconds: 60 }"
    )
    assert "max_attempts=3" in repr(StepRetryPolicy())


@pytest.mark.parametrize(
    "wrong", [lambda: BackoffStrategy.fixed(-1), lambda: BackoffStrategy.exponential(10, 1)]
)
def test_a_back_off_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(pgqrs.ValidationError):
        wrong()
