"""Sends functions to another process by value if no file that this process could import contains
them.

The globals that a function needs are found by the names in its code, and are sent with the
function. All functions of one module share their globals in the other process, as they do here: if
one function sets a global, the others see it. Objects of a module that has a file are sent by the
name of that module. This process reads nothing back.
"""

import builtins
import contextlib
import enum
import os
import pickle
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from types import CellType, CodeType, FunctionType, ModuleType
from typing import IO, Any, TypeAlias

import dill
import msgspec

from pgqrs import errors

ByName: TypeAlias = Callable[[str, str, object], bool]


@contextlib.contextmanager
def written(functions: Sequence[Callable[..., Any]], by_name: ByName) -> Iterator[str]:
    """Writes the functions to a file, and yields the path of the file. The file exists while the
    block lasts, and only this user can read it.

    `by_name(module, name, value)` says whether another process finds the value under this name.
    Raises TargetError for a value that cannot be sent.
    """
    fd, path = tempfile.mkstemp(prefix="pgqrs-functions-")
    try:
        with os.fdopen(fd, "wb") as file:
            write(functions, by_name, file)
        yield path
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)


def write(functions: Sequence[Callable[..., Any]], by_name: ByName, file: IO[bytes]) -> None:
    """Writes the functions, then (place, name, value) for each global and closure variable that the
    functions need, then None.

    The values come last because they may refer to the functions.
    """
    pickler = _Pickler(file, by_name)
    pickler.send("one of the functions", list(functions))
    while pickler.later:
        place, name, value, what = pickler.later.pop(0)
        pickler.send(what, (place, name, value))
    pickler.send("the end", None)


def read(path: str) -> list[Callable[..., Any]]:
    with open(path, "rb") as file:
        unpickler = dill.Unpickler(file)
        functions: list[Callable[..., Any]] = unpickler.load()
        while (given := unpickler.load()) is not None:
            place, name, value = given
            if isinstance(place, dict):
                place[name] = value
            else:
                place.cell_contents = value
    return functions


class _Ways(dict[type, Any]):
    """The function that pickles each type. All classes have the same one, whatever their metaclass."""

    def get(self, kind: Any, default: Any = None) -> Any:
        if kind in self:
            return self[kind]
        return _save_type if issubclass(kind, type) else default


class _Pickler(dill.Pickler):  # type: ignore[misc]
    dispatch = _Ways(dill.Pickler.dispatch)

    def __init__(self, file: IO[bytes], by_name: ByName) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL, recurse=True)
        self.by_name = by_name
        self.later: list[tuple[object, str, object, str]] = []
        self._known: set[tuple[int, str]] = set()

    def send(self, what: str, value: object) -> None:
        try:
            self.dump(value)
        except errors.TargetError:
            raise
        except Exception as e:
            # No `from e`: its traceback would show a walk through hundreds of objects.
            raise _unsendable(what, str(e) or type(e).__name__) from None

    def want_globals(self, function: FunctionType) -> None:
        """Adds the globals that a function's code names, unless another process can import its module."""
        space = function.__globals__
        module = space.get("__name__", "")
        if _in_file(module, space, self.by_name):
            return
        for name in sorted(_names(function)):
            if name in space and (id(space), name) not in self._known:
                self._known.add((id(space), name))
                value = space[name]
                what = f"the global {name!r} ({_kind(value)}), which {function.__qualname__}() uses,"
                self.later.append((_Space(module), name, value, what))


class _Space:
    """Represents the globals of a module in the pickle."""

    def __init__(self, module: str) -> None:
        self.module = module

    def __reduce__(self) -> tuple[Any, ...]:
        return _space, (self.module,)


def _in_file(module: str, space: dict[str, Any], by_name: ByName) -> bool:
    """Whether `space` contains the globals of a module that another process can import."""
    found = sys.modules.get(module)
    if found is None or vars(found) is not space:
        return False
    return any(
        by_name(module, name, value)
        for name, value in space.items()
        if issubclass(type(value), FunctionType | type)
        and (value.__module__, value.__qualname__) == (module, name)
    ) or (module != "__main__" and getattr(found, "__spec__", None) is not None)


def _names(function: FunctionType) -> set[str]:
    """Returns the globals that a function's code may use, including its text annotations."""
    names: set[str] = set()
    codes = [function.__code__]
    for text in function.__annotations__.values():
        if isinstance(text, str):
            with contextlib.suppress(SyntaxError, ValueError):
                codes.append(compile(text, "annotation", "eval"))
    while codes:
        code = codes.pop()
        names |= set(code.co_names)
        codes += [c for c in code.co_consts if isinstance(c, CodeType)]
    return names


def _save_function(pickler: _Pickler, f: FunctionType) -> None:
    if pickler.by_name(f.__module__ or "", f.__qualname__, f):
        pickler.save_global(f, f.__qualname__)
        return
    cells = f.__closure__ or ()
    state = {
        name: getattr(f, name)
        for name in (
            "__defaults__",
            "__kwdefaults__",
            "__annotations__",
            "__doc__",
            "__qualname__",
            "__module__",
        )
    }
    module = f.__globals__.get("__name__", "")
    pickler.save_reduce(
        _function,
        (f.__code__, module, f.__name__, cells),
        (vars(f), state),
        state_setter=_set_state,
        obj=f,
    )
    pickler.want_globals(f)


def _save_cell(pickler: _Pickler, cell: Any) -> None:
    pickler.save_reduce(_cell, (), obj=cell)
    with contextlib.suppress(ValueError):  # the cell is empty
        value = cell.cell_contents
        pickler.later.append((cell, "", value, f"a variable ({_kind(value)}) of the function around"))


def _save_type(pickler: _Pickler, kind: type) -> None:
    if kind.__module__ != "builtins" and pickler.by_name(kind.__module__, kind.__qualname__, kind):
        pickler.save_global(kind, kind.__qualname__)
    elif isinstance(kind, type(msgspec.Struct)) and kind is not msgspec.Struct:
        pickler.save_reduce(_struct, _described(kind), obj=kind)
    elif issubclass(kind, enum.Enum) and kind.__members__:
        pickler.save_reduce(_enum, _described_enum(kind), obj=kind)
    elif hasattr(kind, "__pydantic_core_schema__") and kind.__module__ in sys.modules:
        raise errors.TargetError(
            f"the pydantic model {kind.__qualname__} is in no file, and cannot be sent to another process; "
            "put it into a file that the functions import, or use a dataclass"
        )
    else:
        if "__msgspec_cache__" in vars(
            kind
            # msgspec's cache is derived data, and msgspec creates it again on demand.
        ):
            del kind.__msgspec_cache__  # type: ignore[attr-defined]
        dill.Pickler.dispatch[type](pickler, kind)


def _save_module(pickler: _Pickler, module: ModuleType) -> None:
    """Sends a module by name. dill would send the contents of modules outside site-packages."""
    pickler.save_reduce(_module, (module.__name__,), obj=module)


def _refuse_file(pickler: _Pickler, file: Any) -> None:
    """Refuses a file. dill would open it again in the other process, and would empty it if it is
    open for writing.
    """
    raise errors.TargetError(
        f"the functions use the open file {getattr(file, 'name', file)!r}, which cannot be sent to another "
        "process; open it in the function that needs it"
    )


_Pickler.dispatch[FunctionType] = _save_function
_Pickler.dispatch[CellType] = _save_cell
_Pickler.dispatch[type] = _save_type
_Pickler.dispatch[ModuleType] = _save_module
for _name in ("TextIOWrapper", "BufferedReader", "BufferedWriter", "BufferedRandom", "FileIO"):
    _Pickler.dispatch[getattr(__import__("io"), _name)] = _refuse_file


def _unsendable(what: str, why: str) -> errors.TargetError:
    return errors.TargetError(
        f"{what} cannot be sent to another process ({why}); put "
        "the functions into a file, which the workers import"
    )


def _kind(value: object) -> str:
    return type(value).__qualname__


# In the reading process


def _space(module: str) -> dict[str, Any]:
    if module not in sys.modules:
        try:
            __import__(module)
        except ImportError:
            sys.modules[module] = ModuleType(module)
    space = vars(sys.modules[module])
    # needed by an import statement in such a function
    space.setdefault("__builtins__", builtins)
    return space


def _function(code: CodeType, module: str, name: str, cells: tuple[Any, ...]) -> FunctionType:
    return FunctionType(code, _space(module), name, None, cells)


def _set_state(f: FunctionType, state: tuple[dict[str, Any], dict[str, Any]]) -> None:
    attributes, rest = state
    for name, value in rest.items():
        setattr(f, name, value)
    vars(f).update(attributes)


def _cell() -> Any:
    return CellType()


def _module(name: str) -> ModuleType:
    __import__(name)
    return sys.modules[name]


def _described_enum(kind: type[enum.Enum]) -> tuple[Any, ...]:
    members = {name: member.value for name, member in kind.__members__.items()}
    rest = {
        name: value
        for name, value in vars(kind).items()
        if name not in members
        and not name.startswith(
            ("_member", "_value", "_unhashable", "_hashable", "_use_args", "_new_member", "_generate")
        )
        and name
        not in (
            "__dict__",
            "__weakref__",
            "__new__",
            "__module__",
            "__qualname__",
            "__members__",
            "_missing_",
        )
        and isinstance(value, FunctionType | property | classmethod | staticmethod)
    }
    return type(kind), kind.__name__, kind.__bases__, kind.__module__, kind.__qualname__, members, rest


def _enum(
    kind: Any, name: str, bases: tuple[type, ...], module: str, qualname: str, members: Any, rest: Any
) -> type:
    space = kind.__prepare__(name, bases)
    for key, value in {"__module__": module, "__qualname__": qualname, **members, **rest}.items():
        space[key] = value
    made: type = kind(name, bases, space)
    return made


def _described(kind: Any) -> tuple[Any, ...]:
    """Describes a msgspec Struct for `defstruct` in the other process. dill would create a class
    that msgspec does not recognize.
    """
    every = {f.name: f for f in msgspec.structs.fields(kind)}
    fields = []
    for name, annotation in vars(kind).get("__annotations__", {}).items():
        f = every[name]
        default, factory = (None if d is msgspec.NODEFAULT else (d,) for d in (f.default, f.default_factory))
        fields.append((name, annotation, default, factory))
    left_out = {"__annotations__", "__dict__", "__weakref__", "__slots__", "__match_args__", *every}
    namespace = {
        name: value
        for name, value in vars(kind).items()
        if name not in left_out and not name.startswith(("__struct_", "__msgspec_"))
    }
    config = {n: getattr(kind.__struct_config__, n) for n in dir(kind.__struct_config__) if n[0] != "_"}
    rename = {f.name: f.encode_name for f in every.values() if f.encode_name != f.name}
    return kind.__name__, fields, kind.__bases__, kind.__module__, namespace, config, rename or None


def _struct(
    name: str,
    fields: list[tuple[str, Any, tuple[Any] | None, tuple[Any] | None]],
    bases: tuple[type, ...],
    module: str,
    namespace: dict[str, Any],
    config: dict[str, Any],
    rename: dict[str, str] | None,
) -> type:
    made: list[Any] = []
    for field, annotation, default, factory in fields:
        if factory is not None:
            made.append((field, annotation, msgspec.field(default_factory=factory[0])))
        else:
            made.append((field, annotation) if default is None else (field, annotation, default[0]))
    kind: type = msgspec.defstruct(
        name, made, bases=bases, module=module, namespace=namespace, rename=rename, **config
    )
    return kind
