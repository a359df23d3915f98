"""The target of a supervisor: a file, a module, or functions that a program passed.

A function is identified by its module. Each process imports this module once, so that all functions
of a module share its globals. The program itself (`__main__`) is imported from its file, as
`multiprocessing` does. Functions that are in no file (a notebook, standard input, `python -c`) or
nested in another function are sent by value (`by_value`).
"""

import contextlib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any

from msgspec import Struct

from pgqrs import errors
from pgqrs.flows.definitions import definition_of, definitions_in, distinct, maps_in, refuse_replaced
from pgqrs.flows.flow import Definition
from pgqrs.program import interpreter

MAIN = "__main__"
# The name that multiprocessing gives the program in its child processes.
MAIN_ALIAS = "__mp_main__"


class Package(Struct, frozen=True):
    """A package that contains a module, and that the import system cannot find by its name. pytest
    imports modules this way.
    """

    name: str
    file: str | None
    folders: tuple[str, ...]


class Source(Struct, frozen=True):
    """A module, and the names of the functions that are wanted from it (dotted inside a class).
    Without names, all functions are wanted.

    `module` is the module's name. With `path`, the module is read from that file under that name,
    inside `packages` (outermost first). The name `__main__` means the program itself; `run_as` is
    then the argument of `python -m`.
    """

    module: str
    path: str | None = None
    names: tuple[str, ...] = ()
    packages: tuple[Package, ...] = ()
    run_as: str | None = None

    def __str__(self) -> str:
        where = self.path or self.module
        return f"{where}:{','.join(self.names)}" if self.names else where


class Target(Struct, frozen=True):
    """The source of the functions. `by_value` is a file that `by_value.write` has written.
    `sys_path` is placed in front of the importing process's own path.
    """

    sources: tuple[Source, ...] = ()
    by_value: str | None = None
    sys_path: tuple[str, ...] = ()

    def __str__(self) -> str:
        told = [str(source) for source in self.sources if source.names or not self.by_value]
        return ", ".join([*told, *(["functions that are in no file"] if self.by_value else [])])


def parse(text: str) -> Target:
    """Parses `pipeline.py`, `pipeline.py:workflow`, `my.module` or `my.module:workflow`. Raises
    TargetError for other text.
    """
    where, colon, name = text.partition(":")
    if colon and not name.isidentifier():
        raise errors.TargetError(f"{text!r}: {name!r} cannot be the name of a workflow")
    names = (name,) if name else ()
    if where.endswith(".py") or os.sep in where:
        path = Path(where)
        if not path.is_file():
            told = f"{where} is a folder; name a file in it" if path.is_dir() else f"no such file: {where}"
            raise errors.TargetError(told)
        if path.suffix != ".py":
            raise errors.TargetError(f"{where} is no Python file; a target is a file named *.py, or a module")
        path = path.resolve()
        return Target((Source(path.stem, str(path), names),), sys_path=(str(path.parent),))
    if not where or not all(part.isidentifier() for part in where.split(".")):
        raise errors.TargetError(
            f"{text!r} is neither a Python file nor a module's name; try pipeline.py or my.module"
        )
    return Target((Source(where, names=names),), sys_path=(str(Path.cwd()),))


# Passed functions


@contextlib.contextmanager
def of_functions(functions: Sequence[Callable[..., Any]]) -> Iterator[Target]:
    """Yields the target for functions that a program passed. Raises TargetError if another process
    could not load one of them.
    """
    definitions = distinct(definition_of(f) for f in functions)
    if not definitions:
        raise errors.TargetError("name at least one workflow or handler: store.workers(my_workflow)")
    sys_path = tuple(interpreter.absolute(sys.path))
    named: dict[str, list[str]] = {}
    nowhere = []
    for f in functions:
        place = _place(f)
        if place is None:
            nowhere.append(f)
        else:
            named.setdefault(place[0], []).append(place[1])
    if nowhere and _has_file(MAIN):
        # The globals of the functions may belong to the program.
        named.setdefault(MAIN, [])
    sources = tuple(_source(module, tuple(names)) for module, names in named.items())
    if not nowhere:
        yield Target(sources, sys_path=sys_path)
        return
    from pgqrs.program import by_value

    with by_value.written(nowhere, _by_name) as path:
        yield Target(sources, path, sys_path)


def _place(f: Callable[..., Any]) -> tuple[str, str] | None:
    """Returns the module and the name under which another process finds the function, or None."""
    made = inspect.unwrap(f)
    module: str = getattr(f, "__module__", None) or getattr(made, "__module__", None) or ""
    names: list[str] = [getattr(f, "__qualname__", "")]
    if not names[0]:  # a partial, for example: it has the name that its module gives it
        names = [name for name, value in vars(sys.modules.get(module, f)).items() if value is f]
    for name in names:
        if _by_name(module, name, f):
            return module, name
    return None


def _by_name(module: str, name: str, value: object) -> bool:
    """Whether another process finds the value under this name in this module."""
    if not _has_file(module) or "<locals>" in name or not name:
        return False
    code = getattr(inspect.unwrap(value), "__code__", None)  # type: ignore[arg-type]
    if module == MAIN and code is not None and not os.path.isfile(code.co_filename):
        # Typed interactively after a script (`python -i`): the function is in that module but in no file.
        return False
    found: Any = sys.modules[module]
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is value


def _has_file(module: str) -> bool:
    found = sys.modules.get(module)
    if module == MAIN:
        return os.path.isfile(getattr(found, "__file__", None) or "")
    return found is not None and (getattr(found, "__spec__", None) is not None or _file(found) is not None)


def _file(module: ModuleType) -> str | None:
    file = getattr(module, "__file__", None)
    return os.path.abspath(file) if file and os.path.isfile(file) else None


def _source(name: str, names: tuple[str, ...]) -> Source:
    module = sys.modules[name]
    if name == MAIN:
        spec = getattr(module, "__spec__", None)
        run_as = None if spec is None or spec.name == MAIN else spec.name
        return Source(MAIN, _file(module), names, run_as=run_as)
    if _found_by_search(name, module) or _file(module) is None:
        return Source(name, names=names)
    around = [name.rsplit(".", n)[0] for n in range(name.count("."), 0, -1)]
    packages = [
        Package(p, _file(found), tuple(getattr(found, "__path__", ())))
        for p in around
        if (found := sys.modules.get(p)) is not None
    ]
    return Source(name, _file(module), names, tuple(packages))


def _found_by_search(name: str, module: ModuleType) -> bool:
    """Whether another process that imports a module of this name gets this file."""
    path: Any = None
    found: ModuleSpec | None = None
    parts = name.split(".")
    for n in range(len(parts)):
        found = _searched(".".join(parts[: n + 1]), path)
        if found is None:
            return False
        path = found.submodule_search_locations
    assert found is not None
    here = getattr(module, "__file__", None)
    return here is None or found.origin is None or os.path.realpath(found.origin) == os.path.realpath(here)


def _searched(name: str, path: Any) -> ModuleSpec | None:
    for finder in sys.meta_path:
        with contextlib.suppress(Exception):
            if (found := finder.find_spec(name, path)) is not None:
                return found
    return None


# Programs that workers import again


def refuse_unguarded(functions: Sequence[Callable[..., Any]], frame: FrameType | None) -> None:
    """Refuses `store.workers()` outside `if __name__ == "__main__"`, for functions of the program
    itself: the workers import the program's file, and would start workers again.

    Raises ValidationError before anything is started. `frame` is the caller of store.workers().
    """
    if all(getattr(f, "__module__", None) != MAIN for f in functions):
        return
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") == MAIN:
            if _has_file(MAIN) and frame.f_globals is vars(sys.modules[MAIN]):
                _refuse_unguarded_line(frame.f_code.co_filename, frame.f_lineno)
            return
        frame = frame.f_back


def _refuse_unguarded_line(path: str, line: int) -> None:
    import ast

    try:
        nodes: list[ast.AST] = [ast.parse(Path(path).read_bytes())]
    except (OSError, SyntaxError, ValueError):
        return
    while nodes:
        node = nodes.pop()
        for child in ast.iter_child_nodes(node):
            if getattr(child, "lineno", line + 1) <= line <= getattr(child, "end_lineno", line - 1):
                if isinstance(child, ast.If) and "__name__" in ast.unparse(child.test):
                    return
                nodes.append(child)
    raise errors.ValidationError(
        f"store.workers() stands in {path}, line {line}, where it is executed "
        "whenever that file is imported. The workers import the file for its "
        "functions, and would start workers of their own: put store.workers(), and "
        "all else that must not happen once more, under `if __name__ == '__main__':`"
    )


# True while this process imports a target for a supervisor.
loading = False


def refuse_while_loading() -> None:
    """Raises ValidationError if a program starts workers while it is being imported. The workers
    import the program too, and would start workers without end.
    """
    if loading:
        raise errors.ValidationError(
            "store.workers() was called while its own supervisor imported this script: put it, and all "
            "that should not happen on import, under `if __name__ == '__main__':`"
        )


# In the importing process


def load(target: Target) -> list[Definition]:
    """Imports the target, and returns its workflows and handlers. Raises TargetError with the cause."""
    global loading
    loading = True
    try:
        return _loaded(target)
    finally:
        loading = False


def _loaded(target: Target) -> list[Definition]:
    if target.by_value is not None:
        # Imported before the user's folders come first in the path.
        from pgqrs.program import by_value
    sys.path[:] = dict.fromkeys([*target.sys_path, *interpreter.starters_path, *sys.path])
    interpreter.step_aside()
    found: list[Definition] = []
    for source in target.sources:
        module = _imported(source)
        refuse_replaced(module)
        if source.names:
            found += _named(source, module)
        elif target.by_value is None:
            found += definitions_in(module)
        if target.by_value is None or source.names:
            # Also of a module of which only some functions are named: whoever maps a step of it
            # would wait for ever.
            found += maps_in(module)
    if target.by_value is not None:
        try:
            found += [definition_of(f) for f in by_value.read(target.by_value)]
        except Exception as e:
            raise errors.TargetError(f"{_told(target, e)}\nput them into a module") from e
    if not found:
        folders = [s for s in target.sources if Path(str(s)).is_dir()]
        raise errors.TargetError(
            f"{target} is a folder; name a file in it that holds workflows"
            if folders
            else f"{target} holds no workflow; decorate a function "
            "with @pgqrs.workflow or @pgqrs.handler(queue=…)"
        )
    return distinct(found)


def _named(source: Source, module: ModuleType) -> list[Definition]:
    found = []
    for name in source.names:
        value: Any = module
        for part in name.split("."):
            value = getattr(value, part, None)
        if getattr(value, "__pgqrs__", None) is None and getattr(value, "__pgqrs_step__", None) is None:
            there = ", ".join(sorted(d.function.__name__ for d in definitions_in(module))) or "none at all"
            hint = (
                "; a function under `if __name__ == '__main__':` is not there for workers"
                if source.module == MAIN
                else ""
            )
            raise errors.TargetError(
                f"{source}: no workflow or handler named {name!r}; there is: {there}{hint}"
            )
        found.append(definition_of(value))
    return found


def _imported(source: Source) -> ModuleType:
    try:
        if source.module == MAIN:
            return _main(source)
        if source.path is None:
            return importlib.import_module(source.module)
        for package in source.packages:
            _make_package(package)
        return _from_file(source.module, source.path)
    except ModuleNotFoundError as e:
        if e.name is not None and source.path is None and f"{source.module}.".startswith(e.name + "."):
            where = ", ".join(sys.path[:3])
            raise errors.TargetError(f"{source}: no module named {e.name!r} on {where}, …") from e
        if e.name is not None and e.name.startswith("supervisors."):
            raise errors.TargetError(
                f"{_told(source, e)}\n"
                "`supervisors` is a package of pgqrs, which Python finds before a folder of that name "
                "without an __init__.py: put one into yours, in front on sys.path, or rename it"
            ) from e
        raise errors.TargetError(_told(source, e)) from e
    except errors.TargetError:
        raise
    except (Exception, SystemExit) as e:
        raise errors.TargetError(_told(source, e)) from e


def _main(source: Source) -> ModuleType:
    """Imports the program as `multiprocessing` does in a child process.

    The module's name is `__mp_main__`, so that code under `if __name__ == "__main__"` is not
    executed. The module is also registered as `__main__`, so that the program's pickled objects are
    found.
    """
    assert source.path is not None
    module = ModuleType(MAIN_ALIAS)
    module.__file__ = source.path
    if source.run_as is not None:
        package = source.run_as.rpartition(".")[0]
        if package:
            importlib.import_module(package)
        module.__package__ = package
        module.__spec__ = importlib.util.find_spec(source.run_as)
    sys.modules[MAIN] = sys.modules[MAIN_ALIAS] = module
    code: CodeType = SourceFileLoader(MAIN_ALIAS, source.path).source_to_code(
        Path(source.path).read_bytes(), source.path
    )
    with _keeping_files(source.path, vars(module)):
        exec(code, vars(module))
    return module


@contextlib.contextmanager
def _keeping_files(path: str, its_globals: dict[str, Any]) -> Iterator[None]:
    """Raises TargetError if the program's top level opens a file with contents for writing. The
    program itself has written to that file, and the import would empty it.
    """
    on = True

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if not (on and event == "open" and args[2] & os.O_TRUNC and isinstance(args[0], str | bytes)):
            return
        frame = inspect.currentframe()
        while frame is not None and frame.f_code.co_name != "<module>":
            frame = frame.f_back
        if frame is None or frame.f_globals is not its_globals:
            return
        with contextlib.suppress(OSError):
            if os.stat(args[0]).st_size and os.path.isfile(args[0]):
                raise errors.TargetError(
                    f"{path}, line {frame.f_lineno}, opens {os.fsdecode(args[0])!r} for "
                    "writing whenever the file is imported. The workers import it for its "
                    "functions, and would empty what it has written there: put that under "
                    "`if __name__ == '__main__':`, or into the function that needs it"
                )

    sys.addaudithook(hook)
    try:
        yield
    finally:
        on = False


def _from_file(name: str, path: str) -> ModuleType:
    other = sys.modules.get(name)
    if other is not None:
        if _file(other) == path:
            return other
        raise errors.TargetError(
            f"{path} would be imported as {name!r}, a name that another module has here already "
            f"({getattr(other, '__file__', None) or 'built in'}): rename the file"
        )
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, path
    assert spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return sys.modules.get(name, module)


def _make_package(package: Package) -> None:
    """Creates a package whose folder the import system cannot find."""
    if package.name in sys.modules:
        return
    if package.file is not None:
        spec = importlib.util.spec_from_file_location(
            package.name, package.file, submodule_search_locations=list(package.folders)
        )
        assert spec is not None, package
        assert spec.loader is not None, package
        sys.modules[package.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[package.name])
        return
    module = sys.modules[package.name] = ModuleType(package.name)
    module.__path__ = list(package.folders)


def _told(what: object, error: BaseException) -> str:
    """Describes an error. Shows the user's frames only, because frames of pgqrs and importlib do
    not help.
    """
    frames = traceback.extract_tb(error.__traceback__)
    ours = (__file__, str(Path(__file__).with_name("by_value.py")))
    theirs = [
        f
        for f in frames
        if f.filename not in ours and "importlib" not in f.filename and "/dill/" not in f.filename
    ]
    told = "".join(traceback.format_list(theirs) + traceback.format_exception_only(error)).rstrip()
    return f"{what} could not be imported:\n{told}"
