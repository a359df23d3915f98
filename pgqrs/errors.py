"""Every error of pgqrs, and how any exception is described for the database and built again from what was recorded.

A step that failed is replayed by raising its exception again, so that a workflow's `except FileNotFoundError` works the
same in every execution. Exceptions are not pickled: what is kept is the type's name, the message, the traceback as text and
those arguments that JSON can carry. What cannot be built again from that becomes a StepError, which says the same.
"""

import builtins
import importlib
import json
import math
import re
import sys
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

TEXT_BYTES_MAX = 64 * 1024
MESSAGE_BYTES_MAX = 4 * 1024  # enough to read; a step's error is shown in lists
TRACEBACK_BYTES_MAX = 16 * 1024  # some 150 frames
ARGS_BYTES_MAX = 8 * 1024  # two long messages
ARGS_DEPTH_MAX = 8


class PgqrsError(Exception):
    """The root: `except pgqrs.PgqrsError` catches whatever pgqrs itself raises."""


class PgqrsConnectionError(PgqrsError):
    """The database cannot be reached, or the connection to it was lost."""


class SchemaError(PgqrsConnectionError):
    """The database's tables are missing, incomplete, or newer than this code. In 0.15 it was a PgqrsConnectionError, and is one."""


class ConflictError(PgqrsConnectionError):
    """Somebody else has written the S3 object meanwhile. Nothing was written, so what was called can be called again, and works on
    what they wrote."""


class DatabaseError(PgqrsError):
    """The database refused a statement or a value.

    `refuses_value`: text or JSON that the database cannot hold, a constraint, a limit of its own.
    The same value is refused again. Anything else, such as a missing privilege, may succeed later.
    """

    refuses_value = False


class QueueNotFoundError(PgqrsError):
    """No queue has this name."""


class QueueAlreadyExistsError(PgqrsError):
    """A queue of this name is there already."""


class WorkerNotFoundError(PgqrsError):
    """No worker has this id."""


class MessageNotFoundError(PgqrsError):
    """No message has this id."""


class WorkflowNotFoundError(PgqrsError):
    """No workflow has this name."""


class WorkflowAlreadyExistsError(PgqrsError):
    """A workflow of this name is there already."""


class RunNotFoundError(PgqrsError):
    """No run has this id."""


class SerializationError(PgqrsError, TypeError, ValueError):
    """A value cannot become JSON, or JSON does not fit the annotation that it is read by.

    0.15 raised a plain TypeError for the one and ValueError for the other: what catches those goes on working."""


class ConfigError(PgqrsError):
    """A setting or a DSN that cannot be."""


class RateLimitedError(PgqrsError):
    """More messages in a second than the configuration allows."""


class ValidationError(PgqrsError, ValueError):
    """What was asked for is refused: wrong arguments, over a limit, or not in this state."""


class TimeoutError(PgqrsError, builtins.TimeoutError):
    """A wait ended before what was waited for had happened."""


class InternalError(PgqrsError):
    """A mistake in pgqrs, or a use that it cannot survive."""


class StateTransitionError(PgqrsError):
    """This state cannot follow that one."""


class WorkerSuspendedError(PgqrsError):
    """Whoever polls has been interrupted, or may not poll: its worker is suspended or stopped."""


class ClaimLostError(PgqrsError):
    """Somebody else has claimed the message since: what was to be written of its run was not."""


class TransientStepError(PgqrsError):
    """Raised by a step to be tried again: after `retry_after` (seconds, timedelta or text), None: after the back-off."""

    code: str | None
    retry_after: float | timedelta | str | None

    def __init__(
        self, *message: object, code: str | None = None, retry_after: float | timedelta | str | None = None
    ) -> None:
        super().__init__(*message)
        self.code = code
        self.retry_after = retry_after


class RetriesExhaustedError(PgqrsError):
    """The step has failed for good."""


class StepNotReadyError(PgqrsError):
    """The step waits for its next try, which is due at `retry_at` (ISO 8601 text)."""

    retry_at: str | None

    def __init__(self, *message: object, retry_at: str | None = None) -> None:
        super().__init__(*message)
        self.retry_at = retry_at


class PausedError(PgqrsError):
    """The run is paused."""


class RunFailedError(PgqrsError):
    """The run ended in ERROR. `error` is what `describe` made of the reason."""

    run_id: int | None
    error: dict[str, Any]

    def __init__(
        self, *message: object, run_id: int | None = None, error: dict[str, Any] | None = None
    ) -> None:
        super().__init__(*message)
        self.run_id = run_id
        self.error = error or {}


class RunCancelledError(PgqrsError):
    """The run was cancelled."""


class ReplayMismatchError(PgqrsError):
    """A replay took other steps than those recorded."""


class StepError(PgqrsError):
    """A recorded failure whose exception cannot be built again: `type` is its name, "" if none was recorded."""

    type: str
    message: str
    traceback: str

    def __init__(self, message: str = "", type: str = "", traceback: str = "") -> None:
        super().__init__(f"{type}: {message}" if type else message)
        self.type = type
        self.message = message
        self.traceback = traceback


class WorkerCrashed(PgqrsError):
    """A run's worker processes died so often that the run was given up."""


class WrongThreadError(PgqrsError):
    """A step was called from another thread than its run's."""


class TargetError(PgqrsError):
    """What the command line was told to run is unknown, fails to import, or holds no workflow."""


class SupervisorError(PgqrsError):
    """A supervisor could not start, or gave up."""


# For the database


def describe(exc: BaseException, code: str | None = None) -> dict[str, Any]:
    """What is recorded of an exception. Never raises, whatever the exception does.

    Keys: code ("NON_RETRYABLE" unless given), is_transient, type ("module.qualname"), message (up to 4 KiB), traceback
    (text, up to 16 KiB, without the engine's frames), and args if JSON can carry them all; of a TransientStepError
    also retry_after in seconds (or as text), if it has one. All of it is safe for JSON and for jsonb.
    """
    transient = isinstance(exc, TransientStepError)
    if code is None:
        code = (_as_text(getattr(exc, "code", None)) or "TRANSIENT") if transient else "NON_RETRYABLE"
    error: dict[str, Any] = {
        "code": _clean(code, 255),
        "is_transient": transient,
        "type": _clean(f"{type(exc).__module__}.{type(exc).__qualname__}", 1024),
        "message": _clean(_message(exc), MESSAGE_BYTES_MAX),
        "traceback": _clean(_traceback(exc), TRACEBACK_BYTES_MAX),
    }
    if isinstance(exc, StepError) and exc.type:
        # Passed on by a workflow that did not catch it: its first cause is what counts.
        kind, message = _as_text(exc.type), _as_text(exc.message)
        return error | {"type": _clean(kind, 1024), "message": _clean(message, MESSAGE_BYTES_MAX)}
    args = _plain_args(exc)
    if args is not None:
        error["args"] = args
    retry_after = _plain_delay(getattr(exc, "retry_after", None)) if transient else None
    if retry_after is not None:
        error["retry_after"] = retry_after
    return error


def rebuild(error: object) -> Exception:
    """The exception that `describe` described, with the recorded traceback as a note, ready to be raised.

    Takes the 0.15 shape ({is_transient, code, message, retry_after?}) and a bare string too. What cannot be built as it was
    becomes a StepError. Never raises. Imports the module that the type is in, if this process has not done so yet.
    """
    fields: dict[Any, Any] = error if isinstance(error, dict) else {"message": "" if error is None else error}
    kind, message, trace = (_as_text(fields.get(key)) for key in ("type", "message", "traceback"))
    built = _build(kind, fields.get("args"), message)
    if isinstance(built, TransientStepError):
        built.code = _as_text(fields.get("code")) or None
        built.retry_after = _plain_delay(fields.get("retry_after"))
    if built is not None and (not trace or _noted(built, trace)):
        return built
    step_error = StepError(message, kind, trace)
    if trace:
        _noted(step_error, trace)
    return step_error


def _message(exc: BaseException) -> str:
    try:
        return str(exc)
    except Exception:
        return f"<{type(exc).__qualname__} whose message cannot be shown>"


_ENGINE = tuple(f"{Path(__file__).parent.parent / package}/" for package in ("pgqrs", "supervisors"))


def _traceback(exc: BaseException) -> str:
    try:
        described = traceback.TracebackException.from_exception(exc, compact=True)
        waiting = [described]
        while waiting:
            one = waiting.pop()
            users = [frame for frame in one.stack if not frame.filename.startswith(_ENGINE)]
            if users:  # else the engine itself failed, and its frames are what there is to see
                one.stack = traceback.StackSummary.from_list(users)
            waiting += [
                other
                for other in (one.__cause__, one.__context__, *(one.exceptions or ()))
                if other is not None
            ]
        return "".join(described.format())
    except Exception:  # an exception with a __str__, a cause or notes of a kind that nobody expects
        return ""


class _NotPlain(Exception):
    pass


def _plain_args(exc: BaseException) -> list[Any] | None:
    """What the type has to be called with to get this exception again; None if JSON cannot carry it as it is."""
    try:
        # Pickle's own way of asking: unlike `args` it knows of an OSError's file name and a JSONDecodeError's position.
        reduced = exc.__reduce__()
        again = reduced[1] if isinstance(reduced, tuple) and reduced[0] is type(exc) else exc.args
        plain = [_plain(arg, ARGS_DEPTH_MAX) for arg in again]
        return plain if len(json.dumps(plain)) <= ARGS_BYTES_MAX else None
    except Exception:  # _NotPlain, an integer of 5,000 digits, a __reduce__ that refuses
        return None


def _plain(value: Any, depth: int) -> Any:
    if depth and type(value) is list:
        return [_plain(one, depth - 1) for one in value]
    if depth and type(value) is dict and all(type(key) is str for key in value):
        return {_clean(key, MESSAGE_BYTES_MAX): _plain(one, depth - 1) for key, one in value.items()}
    if type(value) is str:
        return _clean(value, MESSAGE_BYTES_MAX)
    if value is None or type(value) in (bool, int) or (type(value) is float and math.isfinite(value)):
        return value
    raise _NotPlain


def _plain_delay(value: object) -> float | str | None:
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, str):
        return _clean(value, 255)
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max:
        return float(value)
    return None


def storable(text: str) -> str:
    """The text of a failure as every database takes it, and at most TEXT_BYTES_MAX of it."""
    return _clean(text, TEXT_BYTES_MAX)


def _clean(text: str, bytes_max: int) -> str:
    """Without what JSON or jsonb refuses, and not longer: the middle goes, for both ends tell most."""
    text = re.sub("[\ud800-\udfff]", "\ufffd", text.replace("\0", "\u2400"))
    raw = text.encode()
    if len(raw) <= bytes_max:
        return text
    marker = f"\n… {len(raw) - bytes_max:,} bytes left out …\n" if bytes_max > 1024 else "…"
    half = (bytes_max - len(marker.encode())) // 2
    return raw[:half].decode(errors="ignore") + marker + raw[-half:].decode(errors="ignore")


def _as_text(value: object) -> str:
    """A member of a dict that may hold anything."""
    try:
        return value if isinstance(value, str) else "" if value is None else str(value)
    except Exception:
        return ""


def _build(kind: str, args: object, message: str) -> Exception | None:
    try:
        found = _find(kind)
        if not (isinstance(found, type) and issubclass(found, Exception)):
            return None
        if found is StepError:
            return StepError(message)
        if not isinstance(args, list):
            # Ours all take a message; of others nobody knows.
            if not issubclass(found, PgqrsError):
                return None
            args = [message]
        built: object = found(*args)
        if not isinstance(built, Exception):
            return None
        if list(built.args) != args and str(built) != message:
            # Its __init__ has made a message out of the message, taking it for the argument that it once was made of.
            built.args = (message,)
        return built
    except (Exception, SystemExit):  # somebody's __init__, or somebody's module
        return None


def _find(kind: str) -> object:
    """The object of this name. Where the module ends and the class begins is not written in it."""
    parts = kind.split(".")
    for end in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:end])
        module = sys.modules.get(name)
        if module is None and all(part.isidentifier() for part in parts) and "__main__" not in parts:
            try:
                module = importlib.import_module(name)
            except ImportError:
                continue
        if module is None:
            continue
        found: object = module
        for part in parts[end:]:
            found = getattr(found, part, None)
        return found
    return None


def _noted(exc: Exception, trace: str) -> bool:
    try:
        exc.add_note(f"Recorded when it was raised:\n{trace}")
    except Exception:  # a frozen class
        return False
    return True
