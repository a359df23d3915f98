"""An extension of Griffe: shows a derived async method as the function that it is.

`pgqrs/clients/aio.py` derives each async class from a blocking one: `enqueue = undone(Producer.enqueue)`.
Griffe reads the code and runs none of it, so it would show an attribute.
"""

from typing import Any

from griffe import Alias, AliasResolutionError, Class, ExprCall, Extension, Function, Module, Object

# Each calls its first argument, a blocking method, on a thread.
DERIVING = {"awaited", "undone", "carried_out", "awaited_as", "handed_out"}


class Twins(Extension):
    def on_package(self, *, pkg: Module, **kwargs: Any) -> None:
        if pkg.name == "pgqrs":
            show_derived_methods(pkg["clients.aio"])
            show_derived_methods(pkg["clients.s3"])


def show_derived_methods(module: Module) -> None:
    for twin in module.classes.values():
        if isinstance(twin, Class):
            for name, member in list(twin.members.items()):
                blocking = _derived_from(member)
                if blocking is not None:
                    twin.set_member(name, _awaited(name, member, blocking))


def _derived_from(member: Object | Alias) -> Function | None:
    value = getattr(member, "value", None) if member.is_attribute else None
    if not isinstance(value, ExprCall) or value.function.canonical_name not in DERIVING:
        return None
    path = value.arguments[0].canonical_path  # type: ignore[union-attr]  # an expression, as each call of them has
    package, _, inside = path.partition(".")
    try:
        found = member.package.modules_collection[package][inside]
        found = found.final_target if isinstance(found, Alias) else found
    except (KeyError, AliasResolutionError) as error:
        raise LookupError(f"{member.path} is derived from {path}, which is not there") from error
    assert isinstance(found, Function)
    return found


def _awaited(name: str, member: Object | Alias, blocking: Function) -> Function:
    function = Function(
        name,
        lineno=member.lineno,
        endlineno=member.endlineno,
        parameters=blocking.parameters,
        returns=blocking.returns,
        docstring=blocking.docstring,
    )
    function.labels.add("async")
    return function
