"""Converts a function's arguments to one JSON value and back, according to its signature."""

import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from pgqrs.errors import PgqrsError, SerializationError, ValidationError
from pgqrs.values import codec
from pgqrs.values.codec import check, decode, encode, quoted
from pgqrs.values.survival import is_plain


def signature_of(function: Callable[..., Any], *, inputs: bool = True) -> "Signature":
    """Returns the signature of a function. Raises ValidationError if JSON cannot be read with one
    of its annotations.

    `inputs=False` is for functions whose arguments are not stored (steps). Their parameters may
    have any annotation.
    """
    signature = Signature(function)
    names = [*signature.parameters, "return"] if inputs else ["return"]
    for name in names:
        try:
            annotation = signature.annotation(name)
        except NameError:
            continue  # it may be defined later in its module; it is looked up again when first needed
        message = check(annotation, signature._what(name))
        if message is not None:
            raise ValidationError(message)
    return signature


class Signature:
    """Converts a function's arguments to one JSON value X, and X to arguments.

    For a function without parameters, X is null. For a function with one parameter, X is the
    argument itself. For several parameters, or with *args or **kwargs, X is an object with the
    given arguments by name. In this object, *args is a list and **kwargs is an object.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.name: str = getattr(function, "__name__", type(function).__name__)
        self._function = function
        self._signature = inspect.signature(function)
        self._annotations: dict[str, Any] = {}
        parameters = list(self._signature.parameters.values())
        self._single = parameters[0] if len(parameters) == 1 and parameters[0].kind not in _VARIADIC else None

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        return self._signature.parameters

    @property
    def returns(self) -> Any:
        """The evaluated annotation of the result, or Any if there is none. Raises
        SerializationError if it contains an unknown name.
        """
        try:
            return self._annotations["return"]
        except KeyError:
            return self._known("return")

    @property
    def checked_result(self) -> Any:
        """The annotation to check a result against, or `codec.UNCHECKED` while it cannot be resolved."""
        try:
            return self._annotations["return"]
        except KeyError:
            pass
        try:
            return self.annotation("return")
        except NameError:
            return codec.UNCHECKED

    def annotation(self, name: str) -> Any:
        """Returns the evaluated annotation of a parameter or of "return". The annotation of *args
        is a list, and that of **kwargs is a dict. Raises NameError or ValidationError.
        """
        if name not in self._annotations:
            self._annotations[name] = self._evaluated(name)
        return self._annotations[name]

    def unknown(self) -> list[str]:
        """Returns a sentence for each annotation that cannot be resolved although all modules are
        loaded. A call with such an annotation would fail.
        """
        found = []
        for name in (*self.parameters, "return"):
            try:
                self._known(name)
            except SerializationError as e:
                found.append(str(e))
        return found

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Returns X as a Python value. Raises ValidationError if the function does not accept the
        arguments.
        """
        try:
            bound = self._signature.bind(*args, **kwargs).arguments
        except TypeError as e:
            raise ValidationError(f"{self.name}() got wrong arguments: {e}; it is {self}") from None
        if not self.parameters:
            return None
        if self._single is None:
            return bound
        if self._single.name in bound:
            return bound[self._single.name]
        # The argument was left to its default. A stored null would be read as None if the
        # annotation allows it.
        return self._single.default if self._takes_none(self._single.name) else None

    def encode_input(self, args: Sequence[Any], kwargs: Mapping[str, Any], limit: int | None = None) -> bytes:
        """Returns X as JSON. Raises ValidationError or SerializationError."""
        return encode(self.bind(args, kwargs), what=f"the input of {self.name}()", limit=limit)

    def encode_payload(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], limit: int | None = None
    ) -> bytes:
        """Returns the payload that a trigger stores for these arguments.

        The payload is also read back as a worker would read it. If arguments do not fit, or would
        change, this fails in the caller and not in the run. Raises the errors of `encode_input`.
        """
        x = self.bind(args, kwargs)
        raw = encode(x, what=f"the input of {self.name}()", limit=limit)
        bound = self._bound_as(raw)
        again_args, again_kwargs = self.decode_input(raw, bound)
        if is_plain(x) and not self._is_ambiguous:
            return codec.wrap_input(raw, bound)
        given = self._signature.bind(*args, **kwargs).arguments
        again = self._signature.bind(*again_args, **again_kwargs).arguments
        for name, value in given.items():
            if name in again:
                codec.refuse_what_changed(value, again[name], self._known(name), self._what(name))
        return codec.wrap_input(raw, bound)

    def decode_payload(self, payload: bytes) -> tuple[list[Any], dict[str, Any]]:
        """Returns the arguments that a trigger stored, even if the function has gained parameters
        since. Raises the errors of `decode_input`.
        """
        return self.decode_input(*codec.unwrap_bound_input(payload))

    def decode_input(self, raw: bytes, bound: str | None = None) -> tuple[list[Any], dict[str, Any]]:
        """Returns the arguments to call the function with, converted to their annotations.

        `bound` says how the arguments became X. It is None if this is unknown. Raises
        ValidationError if arguments are missing or unknown, and SerializationError if a value does
        not fit its annotation.
        """
        raw = raw or b"null"
        if bound == codec.NONE:
            return self._called_with(self._decode_members(b"{}"))
        if self._single is not None and bound != codec.BY_NAME:
            return self._decode_single(self._single, raw)
        if self.parameters and (bound == codec.ALONE or (bound is None and self._can_only_be_first(raw))):
            return self._called_with(self._decode_first(raw))
        return self._called_with(self._decode_members(raw))

    def _can_only_be_first(self, raw: bytes) -> bool:
        """Whether X is the only argument that the function needs, and does not hold arguments by
        name.
        """
        required = [p for p in self.parameters.values() if p.default is p.empty and p.kind not in _VARIADIC]
        return (
            raw != b"null"
            and not _is_object(raw)
            and required in ([], [next(iter(self.parameters.values()))])
        )

    @functools.cached_property
    def _is_ambiguous(self) -> bool:
        return any(codec.ambiguous(self._known(name)) for name in self.parameters)

    def _bound_as(self, raw: bytes) -> str | None:
        """Returns how the arguments became X. Returns None for a value that can only be the
        argument itself, so that nothing more is stored, as in 0.15.
        """
        if not self.parameters:
            return codec.NONE
        if self._single is None:
            return codec.BY_NAME
        return codec.ALONE if raw == b"null" or _is_object(raw) else None

    def _decode_first(self, raw: bytes) -> dict[str, msgspec.Raw]:
        """Returns X under the name of the parameter that takes it. The function had one parameter
        when X was stored, and has more now.
        """
        first = next(iter(self.parameters.values()))
        if first.kind is first.VAR_KEYWORD:
            raise ValidationError(
                f"{self.name}() takes no argument by position, which its input is; it is {self}"
            )
        value = msgspec.Raw(b"[" + raw + b"]" if first.kind is first.VAR_POSITIONAL else raw)
        self._refuse_missing({first.name: value})
        return {first.name: value}

    def _called_with(self, given: Mapping[str, msgspec.Raw]) -> tuple[list[Any], dict[str, Any]]:
        values = {name: self._decode(name, member) for name, member in given.items()}
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for name, parameter in self.parameters.items():
            if parameter.kind is parameter.VAR_POSITIONAL:
                args += values.get(name, [])
            elif parameter.kind is parameter.VAR_KEYWORD:
                more = values.get(name, {})
                twice = [key for key in more if self._is_keyword(key)]
                if twice:
                    raise ValidationError(
                        f"{name!r} of {self.name}() repeats its parameter {quoted(twice)}; it is {self}"
                    )
                kwargs |= more
            elif parameter.kind is parameter.POSITIONAL_ONLY or (
                # Parameters before *args can only be passed by position if *args has values.
                parameter.kind is parameter.POSITIONAL_OR_KEYWORD and self._fills_args(values)
            ):
                args.append(values.get(name, parameter.default))
            elif name in values:
                kwargs[name] = values[name]
        return args, kwargs

    def __str__(self) -> str:
        return f"{self.name}{self._signature}"

    def _decode_single(self, parameter: inspect.Parameter, raw: bytes) -> tuple[list[Any], dict[str, Any]]:
        if (
            raw == b"null"
            and parameter.default is not parameter.empty
            and not self._takes_none(parameter.name)
        ):
            return [], {}
        try:
            value = self._decode(parameter.name, raw)
        except SerializationError as e:
            if raw == b"null":
                raise SerializationError(
                    f"{e}; null is also what no argument at all becomes: it is {self}"
                ) from e
            raise
        return ([], {parameter.name: value}) if parameter.kind is parameter.KEYWORD_ONLY else ([value], {})

    def _decode_members(self, raw: bytes) -> dict[str, msgspec.Raw]:
        if raw == b"null":
            raw = b"{}"
        try:
            given = _MEMBERS.decode(raw)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as e:
            wanted = (
                "an object with its arguments by name" if self.parameters else "null: it takes no arguments"
            )
            raise SerializationError(f"the input of {self} must be {wanted}: {e}") from e
        unknown = [name for name in given if name not in self.parameters]
        if unknown:
            raise ValidationError(f"{self.name}() has no parameter {quoted(unknown)}; it is {self}")
        self._refuse_missing(given)
        return given

    def _refuse_missing(self, given: Mapping[str, msgspec.Raw]) -> None:
        missing = [
            name
            for name, parameter in self.parameters.items()
            if name not in given and parameter.default is parameter.empty and parameter.kind not in _VARIADIC
        ]
        if missing:
            raise ValidationError(f"{self.name}() is missing its argument {quoted(missing)}; it is {self}")

    def _is_keyword(self, name: str) -> bool:
        parameter = self.parameters.get(name)
        return parameter is not None and parameter.kind in (
            parameter.POSITIONAL_OR_KEYWORD,
            parameter.KEYWORD_ONLY,
        )

    def _fills_args(self, values: Mapping[str, Any]) -> bool:
        return any(p.kind is p.VAR_POSITIONAL and values.get(name) for name, p in self.parameters.items())

    def _decode(self, name: str, raw: bytes | msgspec.Raw) -> Any:
        return decode(bytes(raw), self._known(name), what=self._what(name))

    def _takes_none(self, name: str) -> bool:
        try:
            self._decode(name, b"null")
        except PgqrsError:
            return False
        return True

    def _known(self, name: str) -> Any:
        try:
            return self.annotation(name)
        except NameError as e:
            raise SerializationError(
                f"{self._what(name)} has an annotation that cannot be looked up: {e}; define or import "
                "what it names at module level, and not under `if TYPE_CHECKING`"
            ) from e

    def _what(self, name: str) -> str:
        return f"the result of {self.name}()" if name == "return" else f"argument {name!r} of {self.name}()"

    def _evaluated(self, name: str) -> Any:
        parameter = self.parameters.get(name)
        written = self._signature.return_annotation if parameter is None else parameter.annotation
        if written is inspect.Parameter.empty:
            annotation: Any = Any
        else:
            function = inspect.unwrap(self._function)
            function = function.func if isinstance(function, functools.partial) else function
            try:
                annotation = typing.get_type_hints(
                    types.SimpleNamespace(__annotations__={name: written}),
                    globalns=getattr(function, "__globals__", {}),
                    include_extras=True,
                )[name]
            except (TypeError, SyntaxError, AttributeError) as e:
                raise ValidationError(
                    f"{self._what(name)} has the annotation {written!r}, which is no type: {e}"
                ) from e
        if parameter is not None and parameter.kind is parameter.VAR_POSITIONAL:
            return types.GenericAlias(list, (annotation,))
        if parameter is not None and parameter.kind is parameter.VAR_KEYWORD:
            return types.GenericAlias(dict, (str, annotation))
        return annotation


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])


def _is_object(raw: bytes) -> bool:
    return raw.lstrip()[:1] == b"{"
