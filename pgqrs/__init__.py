"""Durable execution for Python: queues and workflows stored in a database.

pgqrs runs decorated functions in supervised worker processes, and records in the database what each
of them returned.

@pgqrs.step                     a function whose result is recorded once per run
@pgqrs.workflow                 a function that survives the death of its process
@pgqrs.handler(queue="tasks")   a function that receives plain messages
pgqrs.connect(dsn)              a store: trigger runs, enqueue messages, inspect both, run workers

Terms used in the documentation:

message      an item of a queue, with a JSON payload; a plain message is one for a handler
run          one execution of a workflow, started by a message, whose id is also the run's id
replay       executing a run's function again, with the recorded results of its steps
supervisor   the process that claims messages and executes them in its worker processes
claim        the right of one consumer to handle a message; that consumer is the message's holder
lease        the time until which a supervisor's claims are valid unless it renews the lease
dead letter  a message that was given up after too many deliveries
plain        (of a function) not `async def`
"""

from importlib import import_module as _import_module
from typing import Any as _Any

from pgqrs.compat import former_paths as _former_paths

__version__ = "1.0.0.dev0"

# The module of each public name. A module is imported when one of its names is first used. Most of
# these modules import the database drivers and asyncio, which a worker process does not need and
# which would double the cost of forking it (docs/decisions/0010-lazy-imports.md). The stub
# __init__.pyi gives type checkers the same names.
_PUBLIC = {
    "clients.aio": (
        "Admin Consumer ConsumerIterator Job Messages Producer Queues Run RunHandle StepGuard "
        "StepResult Store Workers WorkflowRuns Workflows WorkflowSteps"
    ),
    "compat.builders": (
        "DequeueBuilder EnqueueBuilder RunBuilder StepBuilder TablesBuilder WorkflowBuilder "
        "WorkflowTriggerBuilder dequeue dequeue_builder enqueue run tables"
    ),
    "clients.blocking": "BlockingStore",
    "config": "Config DurabilityMode",
    "clients.jobs": "Outcome Progress",
    "clients.connecting": "connect connect_with",
    "decorators": "WorkflowDef",
    "flows.definitions": "handler step workflow",
    "errors": (
        "ClaimLostError ConfigError ConflictError InternalError MessageNotFoundError PausedError "
        "PgqrsConnectionError PgqrsError QueueAlreadyExistsError QueueNotFoundError "
        "MapError RateLimitedError ReplayMismatchError RetriesExhaustedError RunCancelledError "
        "RunFailedError RunNotFoundError SchemaError SerializationError StateTransitionError "
        "StepError StepNotReadyError SupervisorError TargetError TimeoutError TransientStepError "
        "ValidationError WorkerNotFoundError WorkerSuspendedError WorkflowAlreadyExistsError "
        "WorkflowNotFoundError WrongThreadError"
    ),
    "flows.flow": "Context current_run pause",
    "model.records": (
        "QueueCounts QueueInfo QueueMessage QueueMetrics RunRecord StepRecord SystemStats "
        "WorkerHealthStats WorkerInfo WorkerStats WorkflowRecord"
    ),
    "flows.retry": "BackoffStrategy StepRetryPolicy",
    "clients.s3": "BlockingS3StoreHandle S3StoreHandle as_s3",
    "compat.shorthand": (
        "admin archive archive_batch consume consume_batch delete enqueue_batch enqueue_delayed "
        "extend_vt produce produce_batch"
    ),
    "model.states": "StepResultStatus SyncState WorkerStatus WorkflowStatus",
    "manual.validation": "RateLimitStatus ValidationConfig",
}
_MODULES = {name: module for module, names in _PUBLIC.items() for name in names.split()}
# Former import paths: each of these modules is also available as `pgqrs.<last part of its name>`.
_FORMER = {module.rpartition(".")[2]: f"pgqrs.{module}" for module in _PUBLIC} | {
    "client": "pgqrs.clients.blocking"
}
_former_paths.keep({f"pgqrs.{name}": module for name, module in _FORMER.items()})

__all__ = sorted(_MODULES)  # noqa: PLE0605  # the literal list is in the stub


def __getattr__(name: str) -> _Any:
    if name in _FORMER:
        return _import_module(_FORMER[name])
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(_import_module(f"pgqrs.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_FORMER})
