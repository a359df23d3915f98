"""Durable execution for Python: queues and workflows whose state lives in a database, run by supervised processes.

@pgqrs.step                     a result that is recorded once
@pgqrs.workflow                 a function that survives the death of its process
@pgqrs.handler(queue="tasks")   plain messages
pgqrs.connect(dsn)              a store: trigger, enqueue, look, run workers
"""

from pgqrs.client import RunHandle, Store, connect
from pgqrs.config import Config
from pgqrs.definitions import handler, step, workflow
from pgqrs.errors import (
    ConfigError,
    InternalError,
    MessageNotFoundError,
    PausedError,
    PgqrsConnectionError,
    PgqrsError,
    QueueAlreadyExistsError,
    QueueNotFoundError,
    RateLimitedError,
    ReplayMismatchError,
    RetriesExhaustedError,
    RunCancelledError,
    RunFailedError,
    RunNotFoundError,
    SchemaError,
    SerializationError,
    StateTransitionError,
    StepError,
    StepNotReadyError,
    SupervisorError,
    TargetError,
    TimeoutError,
    TransientStepError,
    ValidationError,
    WorkerNotFoundError,
    WorkflowNotFoundError,
    WrongThreadError,
)
from pgqrs.flow import Context, current_run, pause
from pgqrs.records import (
    QueueCounts,
    QueueInfo,
    QueueMessage,
    RunRecord,
    StepRecord,
    WorkerInfo,
    WorkflowRecord,
)
from pgqrs.retry import BackoffStrategy, StepRetryPolicy
from pgqrs.states import WorkerStatus, WorkflowStatus

__version__ = "1.0.0.dev0"

__all__ = [
    "BackoffStrategy",
    "Config",
    "ConfigError",
    "Context",
    "InternalError",
    "MessageNotFoundError",
    "PausedError",
    "PgqrsConnectionError",
    "PgqrsError",
    "QueueAlreadyExistsError",
    "QueueCounts",
    "QueueInfo",
    "QueueMessage",
    "QueueNotFoundError",
    "RateLimitedError",
    "ReplayMismatchError",
    "RetriesExhaustedError",
    "RunCancelledError",
    "RunFailedError",
    "RunHandle",
    "RunNotFoundError",
    "RunRecord",
    "SchemaError",
    "SerializationError",
    "StateTransitionError",
    "StepError",
    "StepNotReadyError",
    "StepRecord",
    "StepRetryPolicy",
    "Store",
    "SupervisorError",
    "TargetError",
    "TimeoutError",
    "TransientStepError",
    "ValidationError",
    "WorkerInfo",
    "WorkerNotFoundError",
    "WorkerStatus",
    "WorkflowNotFoundError",
    "WorkflowRecord",
    "WorkflowStatus",
    "WrongThreadError",
    "connect",
    "current_run",
    "handler",
    "pause",
    "step",
    "workflow",
]
