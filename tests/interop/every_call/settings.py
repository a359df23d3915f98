"""What needs no database: names, settings, policies."""

from look import ERRORS, section

import pgqrs


@section
async def names(look):
    for name in ("WorkerStatus", "WorkflowStatus", "StepResultStatus"):
        enum = getattr(pgqrs, name)
        for member in ["Ready", "Polling", "Suspended", "Interrupted", "Stopped", "Queued", "Running", "Paused", "Success", "Error", "Execute", "Skipped"]:  # fmt: skip
            if hasattr(enum, member):
                value = getattr(enum, member)
                look.tell(f"{name}.{member}", (repr(value), str(value), int(value), type(value) is enum))
                look.tell(
                    f"{name}.{member} compares",
                    (value == getattr(enum, member), value == int(value), value != "x"),
                )
    await look.see("hash", lambda: {pgqrs.WorkflowStatus.Success: 1})
    look.tell("of different enums", pgqrs.WorkerStatus.Ready == pgqrs.WorkflowStatus.Queued)
    await look.see("order", lambda: pgqrs.WorkerStatus.Ready < pgqrs.WorkerStatus.Polling)
    for name in sorted(n for n in dir(pgqrs) if n in ERRORS):
        error = getattr(pgqrs, name)
        made = error("a text")
        made.code = "CODE"
        look.tell(
            name,
            (
                str(made),
                made.args,
                error.__bases__[0].__name__,
                issubclass(error, pgqrs.PgqrsError),
                made.code,
            ),
        )


@section
async def public_names(look):
    """Every public name of 0.15.3 and every public attribute of its classes."""
    for name in PUBLIC.split():
        owner, _, attribute = name.partition(".")
        look.tell(
            name, hasattr(getattr(pgqrs, owner, None), attribute) if attribute else hasattr(pgqrs, owner)
        )


PUBLIC = (  # dir() of 0.15.3 and of its classes, beyond what the other sections use by name
    "Admin BackoffStrategy Config Consumer ConsumerIterator DequeueBuilder Messages Producer QueueInfo QueueMessage Queues Run "
    "RunBuilder RunRecord StepBuilder StepGuard StepRecord StepResult StepResultStatus StepRetryPolicy Store WorkerStatus Workers "
    "WorkflowBuilder WorkflowDef WorkflowRecord WorkflowRuns WorkflowStatus WorkflowSteps WorkflowTriggerBuilder Workflows admin "
    "archive archive_batch connect connect_with consume consume_batch decorators decorators.step decorators.workflow "
    "decorators.WorkflowDef delete dequeue dequeue_builder enqueue enqueue_batch enqueue_delayed extend_vt produce "
    "produce_batch run step workflow Producer.new_producer Consumer.new_consumer Consumer.interrupt"
)


@section
async def configuration(look):
    config = pgqrs.Config("postgresql://a@b/c")
    settings = [n for n in SETTINGS.split() if n not in ("from_dsn",)]
    for name in settings:
        look.tell(f"default {name}", getattr(config, name))
    for name, value in zip(
        settings, ("x://", "s", 3, 4, 5, 6, 7, 8, 9, 10, 11, ["a"], ["b"], 12, 13), strict=True
    ):
        await look.see(f"set {name}", setattr, config, name, value)
        look.tell(f"get {name}", getattr(config, name))
    for name in ("max_enqueue_per_second", "max_enqueue_burst"):
        await look.see(f"no {name}", setattr, config, name, None)
        look.tell(f"{name} none", getattr(config, name))
    look.tell("from_dsn", vars_of(pgqrs.Config.from_dsn("postgresql://a@b/c")))
    look.tell("all given", vars_of(pgqrs.Config("postgres://a@b/c", "other", 2)))
    look.tell("by name", vars_of(pgqrs.Config(dsn="postgres://a@b/c", schema="other", max_connections=2)))
    for label, schema in (("empty", ""), ("digit", "1a"), ("dash", "a-b"), ("63", "a" * 63), ("64", "a" * 64), ("dollar", "a$_1"),
                          ("umlaut", "ä"), ("upper", "Ab")):  # fmt: skip
        await look.see(
            f"schema {label}", lambda s=schema: pgqrs.Config("postgresql://a@b/c", schema=s).schema
        )
        await look.see(f"set schema {label}", setattr, config, "schema", schema)
    for label, arguments in (("nothing", ()), ("number", (1,)), ("text for a number", ("postgresql://a@b/c", None, "x")),
                             ("no connections", ("postgresql://a@b/c", None, 0)), ("negative", ("postgresql://a@b/c", None, -1))):  # fmt: skip
        await look.see(f"made of {label}", pgqrs.Config, *arguments)
    await look.see("set a wrong type", setattr, config, "max_read_ct", "x")
    await look.see("set a negative", setattr, config, "max_payload_size_bytes", -1)
    await look.see("set a list of numbers", setattr, config, "forbidden_keys", [1])
    await look.see("unknown setting", setattr, config, "nonsense", 1)


SETTINGS = (
    "dsn schema max_connections connection_timeout_seconds default_lock_time_seconds default_max_batch_size max_read_ct "
    "heartbeat_interval_seconds max_payload_size_bytes max_string_length max_object_depth forbidden_keys required_keys "
    "max_enqueue_per_second max_enqueue_burst"
)


def vars_of(config):
    return [getattr(config, name) for name in SETTINGS.split()]


@section
async def policies(look):
    policy, backoff = pgqrs.StepRetryPolicy, pgqrs.BackoffStrategy
    for label, made in (("fixed", lambda: backoff.fixed(2)), ("exponential", lambda: backoff.exponential(1, 60)),
                        ("jitter", lambda: backoff.exponential_with_jitter(1, 60)), ("by name", lambda: backoff.fixed(delay_seconds=3)),
                        ("negative", lambda: backoff.fixed(-1)), ("text", lambda: backoff.fixed("x"))):  # fmt: skip
        await look.see(f"backoff {label} repr", lambda m=made: repr(m()))
    await look.see("backoff by names", lambda: repr(backoff.exponential(base_seconds=1, max_seconds=2)))
    for label, made in (("default", policy), ("attempts", lambda: policy(5)), ("both", lambda: policy(max_attempts=2, backoff=backoff.fixed(1))),
                        ("zero", lambda: policy(0)), ("negative", lambda: policy(-1))):  # fmt: skip
        await look.see(f"policy {label} repr", lambda m=made: repr(m()))
    await look.see("policy is frozen", setattr, policy(), "max_attempts", 7)
