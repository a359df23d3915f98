"""What a supervisor is pointed at: a file, a module, or functions that were handed over."""

import importlib
import importlib.util
import io
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from msgspec import Struct

from pgqrs import errors
from pgqrs.definitions import definition_of, definitions_in, distinct
from pgqrs.flow import Definition


class Target(Struct, frozen=True):
    """Where the functions come from: `path` (a file) or `module`, and only `name` of it if given; or `pickled`, functions
    as dill wrote them. `sys_path` goes in front of the importing process's own."""

    path: str | None = None
    module: str | None = None
    name: str | None = None
    pickled: bytes | None = None
    sys_path: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.pickled is not None:
            return "functions of a script or notebook"
        return (self.path or self.module or "") + (f":{self.name}" if self.name else "")


def parse(text: str) -> Target:
    """`pipeline.py`, `pipeline.py:workflow`, `my.module`, `my.module:workflow`. Raises TargetError for what is neither."""
    where, colon, name = text.partition(":")
    if colon and not name.isidentifier():
        raise errors.TargetError(f"{text!r}: {name!r} cannot be the name of a workflow")
    if where.endswith(".py") or os.sep in where:
        path = Path(where)
        if not path.is_file():
            raise errors.TargetError(f"no such file: {where}")
        if path.suffix != ".py":
            raise errors.TargetError(f"{where} is no Python file; a target is a file named *.py, or a module")
        return Target(path=str(path.resolve()), name=name or None, sys_path=(str(path.resolve().parent),))
    if not where or not all(part.isidentifier() for part in where.split(".")):
        raise errors.TargetError(
            f"{text!r} is neither a Python file nor a module's name; try pipeline.py or my.module"
        )
    return Target(module=where, name=name or None, sys_path=(str(Path.cwd()),))


def of_functions(functions: Sequence[Callable[..., Any]]) -> Target:
    """For functions at hand: by their module where it can be imported, else as dill's bytes."""
    definitions = distinct(definition_of(f) for f in functions)
    if not definitions:
        raise errors.TargetError("name at least one workflow or handler: store.workers(my_workflow)")
    modules = {f.__module__ for f in functions}
    sys_path = tuple(p or str(Path.cwd()) for p in sys.path)
    if len(modules) == 1 and all(_importable(f) for f in functions):
        return Target(
            module=modules.pop(), name=",".join(f.__qualname__ for f in functions), sys_path=sys_path
        )

    try:
        _forget_caches(modules)
        pickled = _dumps(list(functions))
        _check_readable(pickled)
    except Exception as e:
        main = getattr(sys.modules.get("__main__"), "__file__", None)
        if modules == {"__main__"} and main:
            names = {getattr(f, "__qualname__", "") for f in functions}
            return Target(path=str(Path(main).resolve()), name=",".join(sorted(names)), sys_path=sys_path)
        raise errors.TargetError(
            f"these functions cannot be sent to another process ({type(e).__name__}: {e}); put them into a module"
        ) from e
    return Target(pickled=pickled, sys_path=sys_path)


def _check_readable(pickled: bytes) -> None:
    """What dill writes it cannot always read in another process (a msgspec Struct of __main__, say): tried here with the
    `__main__` that such a process has."""
    import dill

    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        dill.loads(pickled)
    finally:
        sys.modules["__main__"] = main


def _dumps(functions: list[Callable[..., Any]]) -> bytes:
    """dill's bytes, with every module by its name: dill would send the contents of those outside site-packages."""
    import dill

    class Pickler(dill.Pickler):  # type: ignore[misc]
        dispatch = dill.Pickler.dispatch.copy()

    def save_module(pickler: Any, module: ModuleType) -> None:
        pickler.save_reduce(importlib.import_module, (module.__name__,), obj=module)

    Pickler.dispatch[ModuleType] = save_module
    out = io.BytesIO()
    Pickler(out, recurse=True).dump(functions)
    return out.getvalue()


def _forget_caches(modules: Iterable[str]) -> None:
    """msgspec leaves on a class what it found out about it, which cannot be sent; it finds it out again when asked."""
    for module in modules:
        for value in vars(sys.modules[module]).values() if module in sys.modules else ():
            if isinstance(value, type) and "__msgspec_cache__" in vars(value):
                del value.__msgspec_cache__  # type: ignore[attr-defined]


loading = False  # in this process a target is being imported for a supervisor


def load(target: Target) -> list[Definition]:
    """Imports the target, loudly, and returns its workflows and handlers. Raises TargetError that says what is wrong."""
    global loading
    loading = True
    try:
        return _loaded(target)
    finally:
        loading = False


def refuse_while_loading() -> None:
    """A script that starts workers as soon as it is imported would start them again in each process that imports it for
    these workers, without end. Raises ValidationError then."""
    if loading:
        raise errors.ValidationError(
            "store.workers() was called while its own supervisor imported this script: put it, and all that should not "
            "happen on import, under `if __name__ == '__main__':`"
        )


def _loaded(target: Target) -> list[Definition]:
    sys.path[:0] = (
        [p for p in target.sys_path if p not in sys.path] if target.pickled else list(target.sys_path)
    )
    if target.pickled is not None:
        import dill

        try:
            return distinct(definition_of(f) for f in dill.loads(target.pickled))
        except Exception as e:
            raise errors.TargetError(f"{target}: {_told(target, e)}; put them into a module") from e
    module = _imported(target)
    found = definitions_in(module)
    if target.name is not None:
        wanted = target.name.split(",")
        values = [getattr(module, n, None) for n in wanted]
        missing = [n for n, v in zip(wanted, values, strict=True) if getattr(v, "__pgqrs__", None) is None]
        if missing:
            there = ", ".join(sorted(d.function.__name__ for d in found)) or "none at all"
            raise errors.TargetError(
                f"{target}: no workflow or handler named {missing[0]!r}; there is: {there}"
            )
        return distinct(definition_of(v) for v in values)
    if not found:
        raise errors.TargetError(
            f"{target} holds no workflow; decorate a function with @pgqrs.workflow or @pgqrs.handler(queue=…)"
        )
    return found


def _imported(target: Target) -> ModuleType:
    try:
        if target.path is None:
            return importlib.import_module(target.module or "")
        stem = Path(target.path).stem
        spec = importlib.util.spec_from_file_location(stem, target.path)
        assert spec is not None, target.path
        assert spec.loader is not None, target.path
        module = importlib.util.module_from_spec(spec)
        sys.modules[stem] = module
        spec.loader.exec_module(module)
        return module
    except ModuleNotFoundError as e:
        if (
            e.name is not None
            and target.module is not None
            and (target.module + ".").startswith(e.name + ".")
        ):
            where = ", ".join(sys.path[:3])
            raise errors.TargetError(f"{target}: no module named {e.name!r} on {where}, …") from e
        raise errors.TargetError(_told(target, e)) from e
    except (Exception, SystemExit) as e:
        raise errors.TargetError(_told(target, e)) from e


def _told(target: Target, error: BaseException) -> str:
    """The user's own frames only: ours and importlib's say nothing about the mistake."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [f for f in frames if f.filename != __file__ and "importlib" not in f.filename]
    told = "".join(traceback.format_list(theirs) + traceback.format_exception_only(error)).rstrip()
    return f"{target} could not be imported:\n{told}"


def _importable(function: Callable[..., Any]) -> bool:
    module = sys.modules.get(function.__module__)
    return (
        module is not None
        and function.__module__ != "__main__"
        and getattr(module, "__spec__", None) is not None
        and getattr(module, function.__qualname__, None) is function
    )
