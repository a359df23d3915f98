"""Every call exists twice, awaited and blocking, under one name and with one signature; where one has no twin, it says why."""

import inspect
from typing import get_overloads

import pytest

import pgqrs
from pgqrs.clients import administration, aio, blocking, handle, jobs, s3, using
from pgqrs.compat import shorthand
from pgqrs.manual import consumer, consumer_iterator, producer, runs, table_handles

# By the async class, its blocking one.
TWINS = {
    aio.Store: blocking.Store,
    aio.Admin: administration.Admin,
    aio.Producer: producer.Producer,
    aio.Consumer: consumer.Consumer,
    aio.ConsumerIterator: consumer_iterator.ConsumerIterator,
    aio.Run: runs.Run,
    aio.Using: using.Using,
    aio.RunHandle: handle.RunHandle,
    aio.Job: jobs.Job,
    aio.StepGuard: runs.StepGuard,
    s3.S3StoreHandle: s3.BlockingS3StoreHandle,
    aio.StepResult: runs.StepResult,
    aio.Workers: table_handles.Workers,
    aio.Queues: table_handles.Queues,
    aio.Messages: table_handles.Messages,
    aio.Workflows: table_handles.Workflows,
    aio.WorkflowRuns: table_handles.WorkflowRuns,
    aio.WorkflowSteps: table_handles.WorkflowSteps,
}

ONLY_ASYNC = {
    aio.Producer: {
        "new_producer": "0.15 makes one by its class; blocking it is admin.new_producer(queue, name)"
    },
    aio.Consumer: {
        "new_consumer": "0.15 makes one by its class; blocking it is admin.new_consumer(queue, name)"
    },
}

INSIDE = "for the modules around it, not for callers"
ONLY_BLOCKING = {
    blocking.Store: {
        "open": "connecting is what `await pgqrs.connect(…)` does",
        "anonymous_producer": INSIDE,
        "undo": INSIDE,
        "on_queue": INSIDE,
        "iteration": INSIDE,
        "enqueue_raw": "for the command line, which has JSON already",
        "trigger_raw": "for the command line, which has JSON already",
        "messages": INSIDE,
        "kept": INSIDE,
        "forget": INSIDE,
    },
    administration.Admin: {
        "new_producer": "Producer.new_producer(admin, queue, name)",
        "new_consumer": "Consumer.new_consumer(admin, queue, name)",
    },
    producer.Producer: {"registered": INSIDE, "undo": INSIDE},
    consumer.Consumer: dict.fromkeys(
        ("registered", "config", "messages", "undo", "put_off", "bury", "keep", "end", "claim"), INSIDE
    ),
    runs.Run: dict.fromkeys(("of_message", "messages", "archive_on_success", "next_retry"), INSIDE),
    handle.RunHandle: {"wait": INSIDE},
}

INSIDE_TWINS = {"core", "ways"}  # how a twin is made

# What is no member of the class, but set on what is made of it.
ATTRIBUTES = {
    blocking.Store: {"config"},
    aio.RunHandle: {"id"},
    handle.RunHandle: {"id"},
    aio.StepResult: {"status", "value", "guard"},
}


def public(kind):
    """Names of its methods, properties and attributes, those of its classes above included."""
    members = {n for n, _ in inspect.getmembers_static(kind) if not n.startswith("_")}
    return members - INSIDE_TWINS | ATTRIBUTES.get(kind, set())


def is_call(kind, name):
    member = inspect.getattr_static(kind, name, None)
    return not isinstance(member, property) and callable(getattr(kind, name, None))


def parameters(kind, name):
    """Of a method, by name: how it is passed and its default. None for a property or an attribute."""
    if not is_call(kind, name):
        return None
    signature = inspect.signature(getattr(kind, name))
    return [(p.name, p.kind, p.default) for p in signature.parameters.values() if p.name != "self"]


SHARED = [(a, b, name) for a, b in TWINS.items() for name in sorted(public(a) & public(b))]


def test_every_async_class_of_the_package_has_a_twin():
    handed_out = {
        value
        for value in (getattr(pgqrs, name) for name in pgqrs.__all__)
        if inspect.isclass(value) and (value.__module__ == "pgqrs.clients.aio" or value is s3.S3StoreHandle)
    }
    assert handed_out | {aio.Using} == set(TWINS)  # which `store.using` alone makes


@pytest.mark.parametrize("twin", TWINS, ids=lambda kind: kind.__name__)
def test_every_awaited_call_can_be_made_blocking(twin):
    assert public(twin) - public(TWINS[twin]) == set(ONLY_ASYNC.get(twin, {}))


@pytest.mark.parametrize("twin", TWINS, ids=lambda kind: kind.__name__)
def test_every_blocking_call_can_be_awaited(twin):
    blocking = TWINS[twin]
    assert public(blocking) - public(twin) == set(ONLY_BLOCKING.get(blocking, {}))


@pytest.mark.parametrize("twin,blocking,name", SHARED, ids=[f"{a.__name__}.{n}" for a, _, n in SHARED])
def test_they_take_the_same_arguments(twin, blocking, name):
    assert parameters(twin, name) == parameters(blocking, name)


# Not methods: iterating, entering a block, waiting.
PROTOCOLS = {
    aio.Store: [("__aenter__", "__enter__"), ("__aexit__", "__exit__")],
    aio.ConsumerIterator: [
        ("__aiter__", "__iter__"),
        ("__anext__", "__next__"),
        ("__aenter__", "__enter__"),
        ("__aexit__", "__exit__"),
    ],
}


@pytest.mark.parametrize("twin", PROTOCOLS, ids=lambda kind: kind.__name__)
def test_what_can_be_done_with_async_with_and_async_for_can_be_done_with_with_and_for(twin):
    for asynchronous, plain in PROTOCOLS[twin]:
        assert hasattr(twin, asynchronous)
        assert hasattr(TWINS[twin], plain)


# Those that need no database, and two whose result is more than a coroutine: a block, and an overloaded call's coroutine.
AT_ONCE = {
    (aio.Run, "id"), (aio.Run, "with_time"), (aio.Store, "consume_iter"), (aio.Store, "workers"), (aio.Store, "trigger"),
    (aio.Store, "using"), (aio.Using, "trigger"), (aio.Job, "outcomes"), (aio.Job, "results"), (aio.Job, "failures"),
}  # fmt: skip
AWAITED = [(a, b, n) for a, b, n in SHARED if is_call(a, n) and (a, n) not in AT_ONCE]


@pytest.mark.parametrize("twin,blocking,name", AWAITED, ids=[f"{a.__name__}.{n}" for a, _, n in AWAITED])
def test_an_async_call_is_awaited_unless_it_needs_no_database(twin, blocking, name):
    member = inspect.getattr_static(twin, name)
    assert isinstance(member, aio.awaited) or inspect.iscoroutinefunction(member)
    assert not inspect.iscoroutinefunction(getattr(blocking, name))


MODULE_FUNCTIONS = [
    "admin", "produce", "produce_batch", "consume", "consume_batch", "enqueue_batch", "enqueue_delayed",
    "archive", "archive_batch", "delete", "extend_vt",
]  # fmt: skip


@pytest.mark.parametrize("name", MODULE_FUNCTIONS)
def test_a_module_function_takes_either_kind(name):
    first = [
        next(iter(inspect.signature(f).parameters.values())) for f in get_overloads(getattr(shorthand, name))
    ]
    annotated = {str(p.annotation) for p in first}
    assert len(first) == 2
    assert any("aio." in a for a in annotated)
    assert any(
        "blocking." in a or "blocking_" in a or "pgqrs.manual.producer" in a or "pgqrs.manual.consumer" in a
        for a in annotated
    )
