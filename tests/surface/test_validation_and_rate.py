"""What a producer refuses, naming the limit that is in the way, and how many messages it sends at once."""

import asyncio

import pytest

import pgqrs
from pgqrs.manual.validation import RateLimiter
from tests.surface.given import QUEUE, a_pair, a_triggered

pytestmark = pytest.mark.backends("sqlite", "postgres")


def configured(dsn, **settings):
    config = pgqrs.Config(dsn)
    for name, value in settings.items():
        setattr(config, name, value)
    return pgqrs.connect_with(config)


def nested(depth):
    value = 1
    for _ in range(depth):
        value = [value]
    return value


# Payloads


@pytest.mark.parametrize(
    "payload,told",
    [
        ("x" * 1025, "String length 1025 exceeds limit 1024"),
        ("é" * 513, "String length 1026 exceeds limit 1024"),
        (["ok", {"a": "x" * 1025}], "String length 1025 exceeds limit 1024"),
        ({"x" * 1025: 1}, "longer than the limit 1024"),
        (nested(6), "Object depth 6 exceeds limit 5"),
        ({"a": {"b": {"c": {"d": {"e": {"f": 1}}}}}}, "Object depth 6 exceeds limit 5"),
        ({"__proto__": 1}, "Forbidden key '__proto__'"),
        ([{"a": {"constructor": 1}}], "Forbidden key 'constructor'"),
        (["x" * 1000] * 1100, "Payload size 1103301 exceeds limit 1048576"),
    ],
    ids=[
        "text",
        "bytes count",
        "inside",
        "key",
        "list depth",
        "dict depth",
        "forbidden",
        "forbidden inside",
        "size",
    ],
)
async def test_what_is_over_a_limit_is_refused_naming_it(store, payload, told):
    producer, consumer = await a_pair(store)
    with pytest.raises(pgqrs.ValidationError, match=told):
        await producer.enqueue(payload)
    assert await consumer.dequeue() == []


@pytest.mark.parametrize(
    "payload",
    [
        "x" * 1024,
        "é" * 512,
        {"x" * 1024: 1},
        nested(5),
        {"proto": 1, "a": "constructor"},
        ["x" * 1000] * 1000,
    ],
    ids=["text", "bytes", "key", "depth", "values", "size"],
)
async def test_what_is_just_within_is_sent(store, payload):
    producer, consumer = await a_pair(store)
    await producer.enqueue(payload)
    [message] = await consumer.dequeue()
    assert message.payload == payload


@pytest.mark.parametrize(
    "payload",
    [
        object(),
        {1, 2},
        b"x",
        [object()],
        {"a": {"b": {3}}},
        {(1, 2): 3},
        float("nan"),
        [float("inf")],
        "nul \0",
        "half \ud800",
    ],
    ids=[
        "object",
        "set",
        "bytes",
        "inside a list",
        "inside a dict",
        "tuple key",
        "nan",
        "inf",
        "nul",
        "half",
    ],
)
async def test_what_is_no_json_is_refused(store, payload):
    producer, consumer = await a_pair(store)
    with pytest.raises(pgqrs.SerializationError):
        await producer.enqueue(payload)
    assert await consumer.dequeue() == []


async def test_who_expects_python_s_own_errors_gets_those_too(store):
    producer, _ = await a_pair(store)
    with pytest.raises(TypeError):
        await producer.enqueue(object())
    with pytest.raises(ValueError):
        await producer.enqueue("x" * 2000)


async def test_tuples_are_lists_and_come_back_as_such(store):
    producer, consumer = await a_pair(store)
    await producer.enqueue((1, ("a",)))
    assert (await consumer.dequeue())[0].payload == [1, ["a"]]


async def test_the_limits_are_those_of_the_settings(dsn):
    async with configured(
        dsn,
        max_string_length=3,
        max_object_depth=1,
        forbidden_keys=["secret"],
        required_keys=["id"],
        max_payload_size_bytes=30,
    ) as store:
        producer, consumer = await a_pair(store)
        for payload, told in {
            "long": ({"id": "abcd"}, "String length 4 exceeds limit 3"),
            "deep": ({"id": [1]}, "depth 2 exceeds limit 1"),
            "forbidden": ({"id": 1, "secret": 2}, "'secret'"),
            "missing": ({"a": 1}, "Required key 'id' missing"),
            "big": ({"id": 1, "a": 10**40}, "size .* exceeds limit 30"),
        }.values():
            with pytest.raises(pgqrs.ValidationError, match=told):
                await producer.enqueue(payload)
        await producer.enqueue({"id": "abc"})
        assert len(await consumer.dequeue(10)) == 1


async def test_required_keys_are_asked_of_objects_only(dsn):
    async with configured(dsn, required_keys=["id"]) as store:
        producer, consumer = await a_pair(store)
        for payload in (1, "text", [{"a": 1}]):
            await producer.enqueue(payload)
        assert len(await consumer.dequeue(10)) == 3


async def test_of_a_batch_the_payload_that_is_refused_is_named_by_its_index(store):
    producer, _ = await a_pair(store)
    with pytest.raises(pgqrs.ValidationError, match="Payload at index 2: Forbidden key"):
        await producer.enqueue_batch([1, 2, {"__proto__": 1}])


@pytest.mark.parametrize("payloads", ["text", {"a": 1}, b"x"], ids=repr)
async def test_a_batch_is_a_list(store, payloads):
    producer, consumer = await a_pair(store)
    with pytest.raises(pgqrs.ValidationError, match="payloads are a list"):
        await producer.enqueue_batch(payloads)
    assert await consumer.dequeue(10) == []


async def test_an_empty_batch_sends_nothing(store):
    producer, _ = await a_pair(store)
    assert await producer.enqueue_batch([]) == []


async def test_a_trigger_is_validated_before_it_is_wrapped(store):
    await a_triggered(store, nested(5))
    with pytest.raises(pgqrs.ValidationError, match="depth 6"):
        await pgqrs.workflow().name("job").store(store).trigger(nested(6)).execute()


# The rate


async def test_over_the_burst_a_producer_is_told_to_wait(dsn):
    async with configured(dsn, max_enqueue_per_second=1, max_enqueue_burst=3) as store:
        producer, consumer = await a_pair(store)
        for n in range(3):
            await producer.enqueue(n)
        with pytest.raises(pgqrs.RateLimitedError, match="retry after 1s"):
            await producer.enqueue(3)
        assert [m.payload for m in await consumer.dequeue(10)] == [0, 1, 2]


async def test_by_default_fifty_go_out_at_once(store):
    producer, _ = await a_pair(store)
    status = await producer.rate_limit_status()
    assert (status.available_tokens, status.max_per_second, status.burst_capacity) == (50, 1000, 50)
    await producer.enqueue_batch([1] * 50)
    with pytest.raises(pgqrs.RateLimitedError, match="more than the burst of 50"):
        await producer.enqueue_batch([1] * 51)


async def test_a_batch_counts_as_its_messages_and_is_refused_whole(dsn):
    async with configured(dsn, max_enqueue_per_second=1, max_enqueue_burst=5) as store:
        producer, consumer = await a_pair(store)
        await producer.enqueue_batch([1, 2, 3])
        assert (await producer.rate_limit_status()).available_tokens == 2
        with pytest.raises(pgqrs.RateLimitedError):
            await producer.enqueue_batch([4, 5, 6])
        await producer.enqueue_batch([4, 5])
        assert len(await consumer.dequeue(10)) == 5


async def test_what_is_refused_costs_nothing(dsn):
    async with configured(dsn, max_enqueue_per_second=1, max_enqueue_burst=2) as store:
        producer, _ = await a_pair(store)
        for _ in range(5):
            with pytest.raises(pgqrs.ValidationError):
                await producer.enqueue({"__proto__": 1})
        assert (await producer.rate_limit_status()).available_tokens == 2


@pytest.mark.parametrize("off", ["max_enqueue_per_second", "max_enqueue_burst"])
async def test_none_switches_the_limit_off(dsn, off):
    async with configured(dsn, **{off: None}) as store:
        producer, consumer = await a_pair(store)
        await producer.enqueue_batch([1] * 500)
        assert await producer.rate_limit_status() is None
        assert len(await consumer.dequeue(1000)) == 500


async def test_each_producer_has_its_own(dsn):
    async with configured(dsn, max_enqueue_per_second=1, max_enqueue_burst=1) as store:
        one, consumer = await a_pair(store)
        other = await store.producer(QUEUE)
        await asyncio.gather(one.enqueue(1), other.enqueue(2))
        assert len(await consumer.dequeue(10)) == 2


def test_tokens_come_back_with_time_up_to_the_burst():
    now = [0.0]
    limiter = RateLimiter(per_second=10, burst=5, clock=lambda: now[0])
    limiter.take(5)
    now[0] = 0.3
    assert limiter.status().available_tokens == 3
    now[0] = 100.0
    assert limiter.status().available_tokens == 5


def test_a_validation_config_has_the_limits_of_the_settings():
    config = pgqrs.Config("sqlite://x.db")
    assert pgqrs.ValidationConfig.of(config) == pgqrs.ValidationConfig()
    config.max_string_length = 7
    assert pgqrs.ValidationConfig.of(config).max_string_length == 7
