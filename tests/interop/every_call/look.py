"""How a section looks at its package and tells what it sees."""

import asyncio
import inspect
import math
import os
import re
from datetime import UTC, datetime, timedelta

import pgqrs

ENOUGH_S = 15  # for any one call
TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?")

FIELDS = {
    "QueueInfo": "id queue_name",
    "QueueMessage": "id queue_id payload vt enqueued_at read_ct dequeued_at producer_worker_id consumer_worker_id archived_at",
    "WorkerInfo": "id name status queue_id heartbeat_at",
    "WorkflowRecord": "id name queue_id",
    "RunRecord": "id workflow_id status input output error created_at updated_at",
    "StepRecord": "run_id step_name status input output error retry_at created_at updated_at",
    "StepResult": "status value guard",
    "StepRetryPolicy": "max_attempts",
}
OBJECTS = [
    "Store",
    "Admin",
    "Producer",
    "Consumer",
    "ConsumerIterator",
    "Workers",
    "Queues",
    "Messages",
    "Workflows",
    "WorkflowRuns",
    "WorkflowSteps",
    "Run",
    "StepGuard",
    "WorkflowBuilder",
    "WorkflowTriggerBuilder",
    "RunBuilder",
    "StepBuilder",
    "DequeueBuilder",
    "Config",
    "WorkflowDef",
]
ERRORS = [
    "PgqrsError",
    "PgqrsConnectionError",
    "QueueNotFoundError",
    "WorkerNotFoundError",
    "QueueAlreadyExistsError",
    "MessageNotFoundError",
    "SerializationError",
    "ConfigError",
    "RateLimitedError",
    "ValidationError",
    "TimeoutError",
    "InternalError",
    "StateTransitionError",
    "TransientStepError",
    "RetriesExhaustedError",
    "StepNotReadyError",
    "PausedError",
]

SECTIONS = {}


def section(function):
    SECTIONS[function.__name__] = function
    return function


class Look:
    """What a section is given: its configuration, a store on it, and a way to tell."""

    def __init__(self, name):
        self.name = name
        self.config = pgqrs.Config(os.environ["PGQRS_DSN"], schema=name)

    async def installed(self):
        self.store = await pgqrs.connect_with(self.config)
        self.admin = pgqrs.admin(self.store)
        await self.admin.install()
        return self.store

    def tell(self, label, value):
        print(f"{self.name}.{label} = {shown(value)}", flush=True)

    async def do(self, label, call, *arguments):
        """Tells whether a call works, whatever it returns."""

        async def done():
            await call(*arguments)
            return "done"

        await self.see(label, done)

    async def see(self, label, call, *arguments, **named):
        """Tells what a call returns or raises, awaited if need be, and returns it."""
        try:
            found = call(*arguments, **named)
            if inspect.isawaitable(found):
                found = await asyncio.wait_for(found, ENOUGH_S)
        except TimeoutError:
            self.tell(label, "does not return")
            return None
        except Exception as error:
            self.tell(label, error)
            if isinstance(error, pgqrs.PgqrsError):
                self.tell(f"{label} (text)", str(error).replace(" UTC", "+00:00"))
            return None
        self.tell(label, found)
        return found


def shown(value):
    """As both packages should show it: a record by the fields that 0.15.3 has, an object by its class."""
    kind = type(value).__name__
    if isinstance(value, BaseException):
        # With all that it is caught by.
        kinds = [c.__name__ for c in type(value).__mro__ if c not in (Exception, BaseException, object)]
        return f"raises {' < '.join(kinds)}"
    if kind in FIELDS:
        return f"{kind}({', '.join(f'{f}={shown(getattr(value, f))}' for f in FIELDS[kind].split())})"
    if kind in OBJECTS:
        return f"<{kind}>"
    if isinstance(value, list | tuple):
        return f"{kind}[{', '.join(map(shown, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{k!r}: {shown(value[k])}' for k in sorted(value, key=str))}}}"
    return TIME.sub("<time>", repr(value))


def seconds_from_now(time):
    """Whole seconds, of which up to one may have passed meanwhile."""
    return math.ceil((datetime.fromisoformat(time) - datetime.now(UTC)).total_seconds())


def at(seconds):
    """A time so many seconds from now, as the calls take it."""
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()
