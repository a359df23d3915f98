"""The errors of pgqrs, and how exceptions are recorded in the database and rebuilt from the record.

A replay of a failed step raises the exception of the step again, so that `except FileNotFoundError`
in a workflow works the same in every execution. Exceptions are not pickled. The record contains the
name of the type, the message and the traceback as text. It contains the arguments, the attributes
and the exceptions that led to this one as JSON (`pgqrs.model.exact`). If an exception cannot be
rebuilt from its record, a StepError with the same information takes its place.
"""

import builtins
import inspect
import sys
import traceback
import types
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

from pgqrs.model.exact import Recorder, clean, restored

TEXT_BYTES_MAX = 64 * 1024
# Enough to read; lists show a step's error.
MESSAGE_BYTES_MAX = 4 * 1024
# About 150 frames.
TRACEBACK_BYTES_MAX = 16 * 1024
# Limits the values in one record, including the exceptions that led to the recorded one.
RECORD_BYTES_MAX = 24 * 1024
# The most exceptions along a chain of causes, contexts and group members.
CHAIN_MAX = 8
# The most recorded members of an exception group.
GROUP_MAX = 100
BASES_MAX = 16
NOTES_MAX = 20

NOTES = "Recorded when it was raised:\n"
NOT_BUILT = "A pgqrs.StepError stands for it here: "

# Keys of the whole record, absent from the records of exceptions inside it.
_OF_THE_WHOLE = ("code", "is_transient", "traceback", "retry_after")
# Entries of an exception's __dict__ that are recorded elsewhere, or only make sense in this process.
_NO_STATE = ("__notes__", "_record")


class PgqrsError(Exception):
    """The base class: `except pgqrs.PgqrsError` catches every error that pgqrs raises."""


class PgqrsConnectionError(PgqrsError):
    """The database cannot be reached, or the connection to it was lost."""


class SchemaError(PgqrsConnectionError):
    """The database's tables are missing or incomplete, or have a version that this code does not
    support.

    This is a PgqrsConnectionError, because 0.15 raised PgqrsConnectionError in this case.
    """


class ConflictError(PgqrsConnectionError):
    """Another writer has replaced the S3 object, and nothing of this call was written. Repeat the
    call: it then works on the new object.
    """


class DatabaseError(PgqrsError):
    """The database refused a statement or a value.

    `refuses_value` is true for text or JSON that the database cannot hold, for a constraint, and
    for a limit of the database. The same value will be refused again. Any other cause, such as a
    missing privilege, may be temporary.
    """

    refuses_value = False


class QueueNotFoundError(PgqrsError):
    """No queue has this name."""


class QueueAlreadyExistsError(PgqrsError):
    """A queue with this name exists already."""


class WorkerNotFoundError(PgqrsError):
    """No worker has this id."""


class MessageNotFoundError(PgqrsError):
    """No message has this id."""


class WorkflowNotFoundError(PgqrsError):
    """No workflow has this name."""


class WorkflowAlreadyExistsError(PgqrsError):
    """A workflow with this name exists already."""


class RunNotFoundError(PgqrsError):
    """No run has this id."""


class SerializationError(PgqrsError, TypeError, ValueError):
    """A value cannot be converted to JSON, or JSON does not match the annotation it is read with.

    This is also a TypeError and a ValueError, which 0.15 raised in these cases.
    """


class ConfigError(PgqrsError):
    """A setting or a DSN is invalid."""


class RateLimitedError(PgqrsError):
    """The producer has sent more messages per second than its configuration allows."""


class ValidationError(PgqrsError, ValueError):
    """The request is refused, because its arguments are invalid, a limit is exceeded, or the
    current state does not allow it.
    """


class ArgumentError(ValidationError, TypeError):
    """An argument has the wrong type. This is also a TypeError, which 0.15 raised in this case."""


class TimeoutError(PgqrsError, builtins.TimeoutError):
    """The time limit of a wait or a run expired."""


class InternalError(PgqrsError):
    """A bug in pgqrs, or a use that pgqrs cannot support."""


class StateTransitionError(PgqrsError):
    """The requested status must not follow the current one."""


class WorkerSuspendedError(PgqrsError):
    """The polling worker was interrupted, or it is suspended or stopped and cannot poll."""


class ClaimLostError(PgqrsError):
    """Another worker has claimed the message. Nothing was written for its run."""


class TransientStepError(PgqrsError):
    """Raised by a step to request a retry. `retry_after` is the delay (seconds, a timedelta or
    text); None means the step's back-off.
    """

    code: str | None
    retry_after: float | timedelta | str | None

    def __init__(
        self, *message: object, code: str | None = None, retry_after: float | timedelta | str | None = None
    ) -> None:
        super().__init__(*message)
        self.code = code
        self.retry_after = retry_after


class RetriesExhaustedError(PgqrsError):
    """The step has failed, and has no retries left."""


class StepNotReadyError(PgqrsError):
    """The step waits for its retry, which is due at `retry_at` (ISO 8601 text)."""

    retry_at: str | None

    def __init__(self, *message: object, retry_at: str | None = None) -> None:
        super().__init__(*message)
        self.retry_at = retry_at


class PausedError(PgqrsError):
    """The run is paused."""


class RunFailedError(PgqrsError):
    """The run ended in ERROR. `error` is the recorded error, a dict with the keys that `describe`
    lists.
    """

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


class MapError(PgqrsError):
    """A map has more failed items than it tolerates. `done` and `failed` count its items, and
    `errors` has the first ten exceptions by item, counted from 0.
    """

    done: int
    failed: int
    errors: dict[int, Exception]

    def __init__(
        self, *message: object, done: int = 0, failed: int = 0, errors: dict[int, Exception] | None = None
    ) -> None:
        super().__init__(*message)
        self.done = done
        self.failed = failed
        self.errors = errors or {}


class ReplayMismatchError(PgqrsError):
    """A replay has called other steps than the recorded ones."""


class StepError(PgqrsError):
    """A recorded failure whose exception cannot be rebuilt. `type` is the exception's name, or ""
    if none was recorded.

    If a base class of the original exception is known, the raised StepError is also an instance of
    that class. So `except OSError` catches the StepError wherever it caught the original exception.
    """

    type: str
    message: str
    traceback: str

    def __init__(self, message: str = "", type: str = "", traceback: str = "") -> None:
        super().__init__(f"{type}: {message}" if type else message)
        self.type = type
        self.message = message
        self.traceback = traceback

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.type else self.message


class WorkerCrashed(PgqrsError):
    """The run ended because its worker processes died too often."""


class WrongThreadError(PgqrsError):
    """A step was called from a thread other than the one that its run started on."""


class TargetError(PgqrsError):
    """The target of the command line does not exist, fails to import, or holds no workflow."""


class SupervisorError(PgqrsError):
    """A supervisor could not start, or has died."""


# Recording and rebuilding


def describe(exc: BaseException, code: str | None = None) -> dict[str, Any]:
    """Returns the record of an exception. Never raises, whatever code the exception contains.

    The record has these keys, all of them safe for JSON and jsonb:

    - code: "NON_RETRYABLE" unless given
    - is_transient
    - type: "module.qualname"
    - message: up to 4 KiB
    - traceback: text, up to 16 KiB, without frames of pgqrs itself
    - args, state (the attributes), bases, notes, cause, context, suppress, exceptions (of a group):
      what `rebuild` needs, together about 24 KiB
    - retry_after: seconds or text, only for a TransientStepError that has it
    """
    transient = isinstance(exc, TransientStepError)
    if code is None:
        code = (_as_text(getattr(exc, "code", None)) or "TRANSIENT") if transient else "NON_RETRYABLE"
    error: dict[str, Any] = {
        "code": clean(code, 255),
        "is_transient": transient,
        **_Describer().described(exc),
        "traceback": clean(_traceback(exc), TRACEBACK_BYTES_MAX),
    }
    retry_after = _plain_delay(getattr(exc, "retry_after", None)) if transient else None
    if retry_after is not None:
        error["retry_after"] = retry_after
    return error


def rebuild(error: object, function: object = None) -> Exception:
    """Rebuilds the exception that `describe` recorded, with the recorded traceback as a note.

    The class is looked up in the loaded modules and, for a class of a script, in the globals of
    `function` (the step that failed). No module is imported, and neither `__init__` nor `__new__`
    of the class is called. If an exception cannot be rebuilt, a StepError takes its place, with a
    note that says why.

    Also accepts a record of 0.15 ({is_transient, code, message, retry_after?}) and a bare string.
    Never raises.
    """
    fields: dict[Any, Any] = error if isinstance(error, dict) else {"message": "" if error is None else error}
    return _Rebuilder(function).rebuilt(fields, CHAIN_MAX)


def without_traceback(text: str) -> str:
    """Returns a recorded text that fits in the first line of an error. If the text has a traceback,
    this is its last line.
    """
    if "Traceback (most recent call last)" not in text:
        return text
    lines = [line.strip() for line in text.splitlines() if line.strip(" |+-^")]
    return lines[-1] if lines else text


def storable(text: str) -> str:
    """Returns the text of a failure in a form that every database accepts, cut to TEXT_BYTES_MAX."""
    return clean(text, TEXT_BYTES_MAX)


# Recording


class _Describer:
    """Builds one record: an exception, with the exceptions inside it and those that led to it."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._recorder = Recorder(RECORD_BYTES_MAX, self._held)
        self._depth = 0

    def described(self, exc: BaseException) -> dict[str, Any]:
        self._seen.add(id(exc))
        error: dict[str, Any] = {
            "type": clean(f"{type(exc).__module__}.{type(exc).__qualname__}", 1024),
            "message": clean(_message(exc), MESSAGE_BYTES_MAX),
        }
        if isinstance(exc, StepError) and exc.type:
            # A workflow did not catch this step's failure. Record the exception of the step itself.
            recorded = _own_dict(exc).get("_record")
            if isinstance(recorded, dict):
                return {k: v for k, v in recorded.items() if k not in _OF_THE_WHOLE}
            kind, message = _as_text(exc.type), _as_text(exc.message)
            return {"type": clean(kind, 1024), "message": clean(message, MESSAGE_BYTES_MAX)}
        try:
            return error | self._parts(exc)
        except Exception:  # raised by a __reduce__, a property or a __dict__ of the exception's class
            return error

    def _parts(self, exc: BaseException) -> dict[str, Any]:
        parts: dict[str, Any] = {}
        native = _native(type(exc))
        grouped = exc.exceptions if isinstance(exc, BaseExceptionGroup) else None
        # Use the built-in class's own method: unlike `args`, it includes the file name of an OSError.
        args = exc.args[:1] if grouped is not None else native.__reduce__(exc)[1]
        parts["args"] = [self._recorder.plain(arg) for arg in args]
        state = {clean(k, 255): self._recorder.plain(v) for k, v in _state(exc, native, args).items()}
        if state:
            parts["state"] = state
        if type(exc).__module__ != "builtins":
            bases = type(exc).__mro__[1:]
            names = [f"{b.__module__}.{b.__qualname__}" for b in bases if issubclass(b, Exception)]
            parts["bases"] = [clean(name, 1024) for name in names[:BASES_MAX] if name != "builtins.Exception"]
        notes = [
            n for n in _own_dict(exc).get("__notes__", ()) if isinstance(n, str) and not n.startswith(NOTES)
        ]
        if notes:
            parts["notes"] = [clean(note, MESSAGE_BYTES_MAX) for note in notes[:NOTES_MAX]]
        if grouped is not None:
            held = [self._held(one) for one in grouped[:GROUP_MAX]]
            parts["exceptions"] = [one for one in held if one is not None]
            if len(parts["exceptions"]) < len(grouped):
                parts["left_out"] = len(grouped) - len(parts["exceptions"])
        return parts | self._chain(exc)

    def _chain(self, exc: BaseException) -> dict[str, Any]:
        cause = None if exc.__cause__ is None else self._held(exc.__cause__)
        if cause is not None:
            return {"cause": cause}
        if exc.__suppress_context__:
            return {"suppress": True}
        context = None if exc.__context__ is None else self._held(exc.__context__)
        return {} if context is None else {"context": context}

    def _held(self, exc: BaseException) -> dict[str, Any] | None:
        """Returns the record of a related exception. Returns None if that exception was recorded
        already or is nested too deeply, or if the whole record is large enough.
        """
        if id(exc) in self._seen or self._depth >= CHAIN_MAX or self._recorder.left_bytes <= 0:
            return None
        self._depth += 1
        try:
            told = self.described(exc)
        finally:
            self._depth -= 1
        self._recorder.left_bytes -= len(told["message"]) + len(told["type"])
        return told


def _native(kind: type) -> type[BaseException]:
    """Returns the nearest built-in base class. With this class an exception can be created without
    the `__init__` of its own class.
    """
    heap_type = 1 << 9
    return next(base for base in kind.__mro__ if not base.__flags__ & heap_type)


def _blank(kind: type[BaseException], args: Sequence[Any]) -> BaseException:
    """Creates an exception through its built-in base class, without executing code of its own class."""
    native = _native(kind)
    made = native.__new__(kind, *args)
    native.__init__(made, *args)
    return made


def _state(exc: BaseException, native: type, args: Sequence[Any]) -> dict[str, Any]:
    """Returns the attributes of an exception: `__dict__`, `__slots__`, and what the built-in class
    stores beyond `args`, such as the name of an ImportError.
    """
    state = {k: v for k, v in _own_dict(exc).items() if isinstance(k, str) and k not in _NO_STATE}
    slots = _slots(type(exc))
    if slots and not isinstance(exc, BaseExceptionGroup):
        blank = _blank(native, args)
        for name, slot in slots.items():
            value = _slot_value(slot, exc)
            if value is not _slot_value(slot, blank) and value is not _ABSENT:
                state[name] = value
    return state


def _slots(kind: type) -> dict[str, Any]:
    """Returns the slots that hold values outside `__dict__`, by name."""
    return {
        name: slot
        for base in reversed(kind.__mro__)
        for name, slot in vars(base).items()
        if isinstance(slot, types.MemberDescriptorType) and not name.startswith("__") and name != "obj"
    }


_ABSENT = object()


def _slot_value(slot: Any, exc: BaseException) -> Any:
    try:
        return slot.__get__(exc)
    except (AttributeError, TypeError):  # the slot is unset, or belongs to another class
        return _ABSENT


def _own_dict(exc: BaseException) -> dict[str, Any]:
    """Returns the exception's `__dict__`, even if its class redefines that name."""
    found: dict[str, Any] = BaseException.__dict__["__dict__"].__get__(exc)
    return found


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
            if users:  # otherwise pgqrs itself failed, and its frames are all there is
                one.stack = traceback.StackSummary.from_list(users)
            waiting += [
                other
                for other in (one.__cause__, one.__context__, *(one.exceptions or ()))
                if other is not None
            ]
        return "".join(described.format())
    except Exception:  # a __str__, a cause or a note of an unexpected kind
        return ""


def _plain_delay(value: object) -> float | str | None:
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, str):
        return clean(value, 255)
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max:
        return float(value)
    return None


def _as_text(value: object) -> str:
    """Converts a value of any type to text. Never raises."""
    try:
        return value if isinstance(value, str) else "" if value is None else str(value)
    except Exception:
        return ""


# Rebuilding


class _Rebuilder:
    def __init__(self, function: object) -> None:
        self._finder = _Finder(function)

    def rebuilt(self, fields: Any, depth: int) -> Exception:
        """Rebuilds one exception with its causes. Never raises."""
        if depth < 0:
            return StepError("nested too deeply to be built again")
        fields = fields if isinstance(fields, dict) else {}
        kind, message, trace = (_as_text(fields.get(key)) for key in ("type", "message", "traceback"))
        found = self._finder.exception(kind)
        built = None if found is None else self._built(found, fields, message, depth)
        notes = [one for one in _a_list(fields.get("notes")) if isinstance(one, str)]
        if trace:
            notes.append(f"{NOTES}{trace}")
        if built is None:
            built = self._stand_in(kind, fields, message, trace, depth)
            if kind:
                notes.append(f"{NOT_BUILT}{self._why_not(kind, found)}")
        left_out = fields.get("left_out")
        if left_out:
            notes.append(f"{left_out} more exceptions of this group are not recorded.")
        if notes:
            _own_dict(built)["__notes__"] = notes
        self._link(built, fields, depth)
        return built

    def _built(self, found: type, fields: dict[Any, Any], message: str, depth: int) -> Exception | None:
        if found is StepError and fields.get("args") is None:
            return StepError(message)
        if not isinstance(fields.get("args"), list):
            # Every error of pgqrs accepts a single message. Other classes may not.
            if not issubclass(found, PgqrsError):
                return None
            fields = fields | {"args": [message]}
        try:
            built = self._instance(found, fields, depth)
        except Exception:  # arguments that do not fit, or a class that only its own code can create
            return None
        if isinstance(built, TransientStepError) and "state" not in fields:
            built.code = _as_text(fields.get("code")) or None
            built.retry_after = _plain_delay(fields.get("retry_after"))
        return built

    def _instance(self, found: type, fields: dict[Any, Any], depth: int) -> Exception:
        args = [self._value(arg, depth) for arg in fields["args"]]
        if issubclass(found, BaseExceptionGroup):
            members = [self.rebuilt(one, depth - 1) for one in _a_list(fields.get("exceptions"))]
            args = [*args[:1], members]
        built = _blank(found, args)
        if not isinstance(built, Exception):
            raise TypeError("no Exception")
        slots = _slots(found)
        for name, plain in _a_dict(fields.get("state")).items():
            value = self._value(plain, depth)
            try:
                slots[name].__set__(built, value) if name in slots else _own_dict(built).update({name: value})
            except (AttributeError, TypeError):  # the slot is read-only, or does not accept this value
                continue
        return built

    def _value(self, plain: Any, depth: int) -> Any:
        return restored(plain, self._finder.any, lambda told: self.rebuilt(told, depth - 1))

    def _link(self, built: Exception, fields: dict[Any, Any], depth: int) -> None:
        if depth <= 0:
            return
        if fields.get("cause") is not None:
            built.__cause__ = built.__context__ = self.rebuilt(fields["cause"], depth - 1)
        elif fields.get("context") is not None:
            built.__context__ = self.rebuilt(fields["context"], depth - 1)
        elif fields.get("suppress"):
            built.__suppress_context__ = True

    def _stand_in(self, kind: str, fields: dict[Any, Any], message: str, trace: str, depth: int) -> StepError:
        made: StepError | None = None
        for name in _a_list(fields.get("bases")):
            base = self._finder.exception(_as_text(name))
            if base is not None and base is not StepError and isinstance(fields.get("args"), list):
                try:
                    both = type("StepError", (StepError, base), {"__module__": __name__})
                    made = cast(StepError, self._instance(both, fields, depth))
                    break
                except Exception:  # the two classes cannot be combined
                    continue
        if made is None:
            made = StepError(message, kind, trace)
        _own_dict(made).update(type=kind, message=message, traceback=trace, _record=fields)
        return made

    def _why_not(self, kind: str, found: object) -> str:
        if found is not None:
            return f"{kind} cannot be built again from its arguments."
        if "<locals>" in kind:
            return (
                f"{kind} is defined inside a function. Define it "
                "at the top of a module, and `except` catches it."
            )
        if isinstance(self._finder.any(kind), type):
            return f"{kind} is no Exception, and nothing else is raised again."
        return (
            f"{kind} is not among the modules that are loaded here. Import it where the workflow is defined."
        )


class _Finder:
    """Finds classes by name among the loaded modules.

    A name from the database must never import a module, and a lookup must execute no code, because
    a module's `__getattr__` may import.
    """

    def __init__(self, function: object) -> None:
        function = inspect.unwrap(function) if callable(function) else function
        found = getattr(function, "__globals__", None)
        self._globals: dict[str, Any] = found if isinstance(found, dict) else {}

    def exception(self, kind: str) -> type[Exception] | None:
        found = self.any(kind)
        return found if isinstance(found, type) and issubclass(found, Exception) else None

    def any(self, kind: str) -> object:
        """Returns the class with this name. The name does not show where the module ends and the
        class begins, so every split is tried.
        """
        if not isinstance(kind, str):
            return None
        parts = kind.split(".")
        for end in range(len(parts) - 1, 0, -1):
            for namespace in self._namespaces(".".join(parts[:end])):
                found = _static(namespace, parts[end:])
                if isinstance(found, type):
                    return found
        return None

    def _namespaces(self, module: str) -> Iterator[Mapping[str, Any]]:
        if module in _SCRIPTS:
            # A script has several names: it is executed, imported by a supervisor, or sent to a worker.
            yield self._own_classes()
            for name in ("__mp_main__", "__main__"):
                yield _namespace(name)
        elif module in sys.modules:
            yield _namespace(module)
        elif module == _script_stem():
            yield self._own_classes()
            yield _namespace("__main__")

    def _own_classes(self) -> dict[str, Any]:
        """Returns the classes that the function's module defines itself."""
        names = {self._globals.get("__name__"), *_SCRIPTS}
        return {
            k: v
            for k, v in list(self._globals.items())
            if issubclass(type(v), type) and v.__module__ in names
        }


_SCRIPTS = ("__main__", "__mp_main__")


def _script_stem() -> str | None:
    file = _namespace("__main__").get("__file__")
    return Path(file).stem if isinstance(file, str) else None


def _namespace(module: str) -> Mapping[str, Any]:
    try:
        found = object.__getattribute__(sys.modules[module], "__dict__")
    except (KeyError, AttributeError):
        return {}
    return found if isinstance(found, dict) else {}


def _static(namespace: Mapping[str, Any], names: Sequence[str]) -> object:
    found: object = namespace.get(names[0])
    for name in names[1:]:
        if not isinstance(found, type):
            return None
        found = type.__getattribute__(found, "__dict__").get(name)
    return found


def _a_list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _a_dict(value: object) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}
