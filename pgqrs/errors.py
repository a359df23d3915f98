"""Every error of pgqrs, and how any exception is described for the database and built again from what was recorded.

A step that failed is replayed by raising its exception again, so that a workflow's `except FileNotFoundError` works the
same in every execution. Exceptions are not pickled. The record holds the type's name, the message, the traceback as text,
and as JSON (`pgqrs.model.exact`) the arguments, the attributes and the exceptions that led to this one. What cannot be built
again from that becomes a StepError, which says the same.
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
MESSAGE_BYTES_MAX = 4 * 1024  # enough to read; a step's error is shown in lists
TRACEBACK_BYTES_MAX = 16 * 1024  # some 150 frames
RECORD_BYTES_MAX = 24 * 1024  # of the values in one record, the exceptions that led to it included
CHAIN_MAX = 8  # exceptions that hold, or led to, one another
GROUP_MAX = 100  # exceptions of a group
BASES_MAX = 16
NOTES_MAX = 20

NOTES = "Recorded when it was raised:\n"
NOT_BUILT = "A pgqrs.StepError stands for it here: "

# What a record has once, and not in each exception that it holds.
_OF_THE_WHOLE = ("code", "is_transient", "traceback", "retry_after")
# What an exception's __dict__ holds that is recorded apart, or is of this process only.
_NO_STATE = ("__notes__", "_record")


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


class ArgumentError(ValidationError, TypeError):
    """An argument is of a kind that the call does not take. 0.15 raised a plain TypeError: what catches that goes on working."""


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
    """A recorded failure whose exception cannot be built again: `type` is its name, "" if none was recorded.

    Where one of the type's base classes is known here, the StepError that is raised is an instance of that too, so
    that `except OSError` catches what it caught when the step first failed.
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
    (text, up to 16 KiB, without the engine's frames); what `rebuild` needs to make the same exception again: args,
    state (its attributes), bases, notes, cause, context, suppress and a group's exceptions, all together about
    24 KiB; of a TransientStepError also retry_after in seconds (or as text), if it has one. All of it is safe for JSON
    and for jsonb.
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
    """The exception that `describe` described, with the recorded traceback as a note, ready to be raised.

    The class is looked for in the modules that this process has loaded and, for a class of a script, in the globals
    of `function` (the step that failed). No module is imported, and no `__init__` or `__new__` of the class is
    called. What cannot be built as it was becomes a StepError, with a note that says why. Takes the 0.15 shape
    ({is_transient, code, message, retry_after?}) and a bare string too. Never raises.
    """
    fields: dict[Any, Any] = error if isinstance(error, dict) else {"message": "" if error is None else error}
    return _Rebuilder(function).rebuilt(fields, CHAIN_MAX)


def without_traceback(text: str) -> str:
    """A recorded text for an error's first lines: of one that holds a traceback, what its last line says."""
    if "Traceback (most recent call last)" not in text:
        return text
    lines = [line.strip() for line in text.splitlines() if line.strip(" |+-^")]
    return lines[-1] if lines else text


def storable(text: str) -> str:
    """The text of a failure as every database takes it, and at most TEXT_BYTES_MAX of it."""
    return clean(text, TEXT_BYTES_MAX)


# Describing


class _Describer:
    """Makes one record: an exception, and those that it holds or that led to it."""

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
            # A workflow passes on what it did not catch. What the step's exception was is what counts.
            recorded = _own_dict(exc).get("_record")
            if isinstance(recorded, dict):
                return {k: v for k, v in recorded.items() if k not in _OF_THE_WHOLE}
            kind, message = _as_text(exc.type), _as_text(exc.message)
            return {"type": clean(kind, 1024), "message": clean(message, MESSAGE_BYTES_MAX)}
        try:
            return error | self._parts(exc)
        except Exception:  # a __reduce__, a property or a __dict__ of the exception's own
            return error

    def _parts(self, exc: BaseException) -> dict[str, Any]:
        parts: dict[str, Any] = {}
        native = _native(type(exc))
        grouped = exc.exceptions if isinstance(exc, BaseExceptionGroup) else None
        # The native class's own way of asking: unlike `args` it knows of an OSError's file name.
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
        """None where it is not recorded: it was seen already, stands too deep, or the record is large enough."""
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
    """The nearest class that is Python's own: it alone says how an exception is made without its class's __init__."""
    heap_type = 1 << 9
    return next(base for base in kind.__mro__ if not base.__flags__ & heap_type)


def _blank(kind: type[BaseException], args: Sequence[Any]) -> BaseException:
    """An exception as Python itself makes it, without a line of its class's own code."""
    native = _native(kind)
    made = native.__new__(kind, *args)
    native.__init__(made, *args)
    return made


def _state(exc: BaseException, native: type, args: Sequence[Any]) -> dict[str, Any]:
    """Its attributes: its __dict__, its __slots__, and what Python keeps of it (the name of an ImportError) beyond args."""
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
    """What holds a value in the instance and not in its __dict__, by name."""
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
    except (AttributeError, TypeError):  # never set, or of another class
        return _ABSENT


def _own_dict(exc: BaseException) -> dict[str, Any]:
    """Its __dict__, whatever its class says of that name."""
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


def _plain_delay(value: object) -> float | str | None:
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, str):
        return clean(value, 255)
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max:
        return float(value)
    return None


def _as_text(value: object) -> str:
    """A member of a dict that may hold anything."""
    try:
        return value if isinstance(value, str) else "" if value is None else str(value)
    except Exception:
        return ""


# Building again


class _Rebuilder:
    def __init__(self, function: object) -> None:
        self._finder = _Finder(function)

    def rebuilt(self, fields: Any, depth: int) -> Exception:
        """Never raises."""
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
            # Ours all take a message; of others nobody knows.
            if not issubclass(found, PgqrsError):
                return None
            fields = fields | {"args": [message]}
        try:
            built = self._instance(found, fields, depth)
        except Exception:  # arguments that no such exception has, or a class that only its own code can make
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
            except (AttributeError, TypeError):  # a slot that is read-only, or takes no such value
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
                except Exception:  # two classes that have no instance in common
                    continue
        if made is None:
            made = StepError(message, kind, trace)
        _own_dict(made).update(type=kind, message=message, traceback=trace, _record=fields)
        return made

    def _why_not(self, kind: str, found: object) -> str:
        if found is not None:
            return f"{kind} cannot be built again from its arguments."
        if "<locals>" in kind:
            return f"{kind} is defined inside a function. Define it at the top of a module, and `except` catches it."
        if isinstance(self._finder.any(kind), type):
            return f"{kind} is no Exception, and nothing else is raised again."
        return (
            f"{kind} is not among the modules that are loaded here. Import it where the workflow is defined."
        )


class _Finder:
    """Classes by their names, in what is loaded already: a name in the database must never import a module, and a lookup
    must run no code (a module's __getattr__ may import)."""

    def __init__(self, function: object) -> None:
        function = inspect.unwrap(function) if callable(function) else function
        found = getattr(function, "__globals__", None)
        self._globals: dict[str, Any] = found if isinstance(found, dict) else {}

    def exception(self, kind: str) -> type[Exception] | None:
        found = self.any(kind)
        return found if isinstance(found, type) and issubclass(found, Exception) else None

    def any(self, kind: str) -> object:
        """A class of this name. Where the module ends and the class begins is not written in it."""
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
            # A script is known by several names: it is run, imported by a supervisor, or sent to a worker.
            yield self._own_classes()
            for name in ("__mp_main__", "__main__"):
                yield _namespace(name)
        elif module in sys.modules:
            yield _namespace(module)
        elif module == _script_stem():
            yield self._own_classes()
            yield _namespace("__main__")

    def _own_classes(self) -> dict[str, Any]:
        """What the function's module defines itself."""
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
