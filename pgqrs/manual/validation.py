"""Limits of a producer of the 0.15 API: shape and size of payloads, and messages per second.

As in 0.15, lengths are in bytes of UTF-8, and depth counts the containers around a value.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct

from pgqrs import errors
from pgqrs.config import Config
from pgqrs.values import codec


class ValidationConfig(Struct, frozen=True):
    """The limits of a producer, named as in `Config`. None in either rate switches the rate limit off."""

    max_payload_size_bytes: int = 1024 * 1024
    max_string_length: int = 1024
    max_object_depth: int = 5
    forbidden_keys: tuple[str, ...] = ("__proto__", "constructor")
    required_keys: tuple[str, ...] = ()
    max_enqueue_per_second: int | None = 1000
    max_enqueue_burst: int | None = 50

    @classmethod
    def of(cls, config: Config) -> "ValidationConfig":
        """Returns the limits of a Config."""
        return cls(
            config.max_payload_size_bytes,
            config.max_string_length,
            config.max_object_depth,
            tuple(config.forbidden_keys),
            tuple(config.required_keys),
            config.max_enqueue_per_second,
            config.max_enqueue_burst,
        )


class RateLimitStatus(Struct, frozen=True):
    """The number of messages that may be sent at once now, and the limits of the rate."""

    available_tokens: int
    max_per_second: int
    burst_capacity: int


def encoded(payload: object, limits: ValidationConfig) -> bytes:
    """Returns the payload as JSON. Raises ValidationError if the payload exceeds the limits.

    Raises SerializationError for values other than dicts with text keys, lists, tuples, text,
    numbers, booleans and None. No value is converted.
    """
    _look(payload, limits, 0)
    if isinstance(payload, dict):
        for key in limits.required_keys:
            if key not in payload:
                raise _refused(f"Required key {key!r} missing from payload")
    raw = codec.encode(codec.with_json_keys(payload), what="the payload")
    if len(raw) > limits.max_payload_size_bytes:
        raise errors.ValidationError(
            f"Payload size {len(raw)} exceeds limit {limits.max_payload_size_bytes}; "
            "store the bulk elsewhere and pass its address, or raise Config.max_payload_size_bytes"
        )
    return raw


def all_encoded(payloads: Sequence[object], limits: ValidationConfig) -> list[bytes]:
    """Returns each payload as JSON. An error names the index of the first payload that is refused."""
    raw = []
    for index, payload in enumerate(payloads):
        try:
            raw.append(encoded(payload, limits))
        except errors.ValidationError as e:
            text = str(e).removeprefix(PREFIX)
            raise errors.ValidationError(f"{PREFIX}Payload at index {index}: {text}") from None
    return raw


PREFIX = "Validation failed: "


def _refused(text: str) -> errors.ValidationError:
    return errors.ValidationError(PREFIX + text)


def _look(value: Any, limits: ValidationConfig, depth: int) -> None:
    if depth > limits.max_object_depth:
        raise _refused(
            f"Object depth {depth} exceeds limit {limits.max_object_depth}; "
            "flatten the payload, or raise Config.max_object_depth"
        )
    kind = type(value)
    if kind is str:
        length = len(value) if value.isascii() else len(value.encode(errors="surrogatepass"))
        if length > limits.max_string_length:
            raise _refused(
                f"String length {length} exceeds limit "
                f"{limits.max_string_length}; raise Config.max_string_length"
            )
    elif isinstance(value, dict):
        for key, member in value.items():
            _look_at_key(key, limits)
            _look(member, limits, depth + 1)
    elif isinstance(value, list | tuple):
        for member in value:
            _look(member, limits, depth + 1)
    elif not (value is None or isinstance(value, str | bool | int | float)):
        raise errors.SerializationError(
            f"Object of type {kind.__name__} is not JSON serializable; "
            "turn it into text, numbers, lists or dicts first"
        )


def _look_at_key(key: object, limits: ValidationConfig) -> None:
    if not (key is None or isinstance(key, str | bool | int)):
        raise errors.SerializationError(
            f"a key of type {type(key).__name__} is not JSON serializable; keys are text"
        )
    if key in limits.forbidden_keys:
        raise _refused(f"Forbidden key {key!r} found in payload; rename it, or change Config.forbidden_keys")
    if isinstance(key, str) and len(key.encode(errors="surrogatepass")) > limits.max_string_length:
        raise _refused(
            f"Key {key[:40]!r}… is longer than the limit "
            f"{limits.max_string_length}; raise Config.max_string_length"
        )


class RateLimiter:
    """A token bucket: a number of tokens per second, and at most `burst` at once. Thread-safe."""

    def __init__(self, per_second: int, burst: int, clock: Callable[[], float]) -> None:
        self._per_second = per_second
        self._burst = burst
        self._clock = clock
        self._lock = threading.Lock()
        self._tokens = float(burst)
        self._filled_at = clock()

    def take(self, count: int) -> None:
        """Takes `count` tokens or none. Raises RateLimitedError."""
        with self._lock:
            self._fill()
            if count > self._burst:
                raise errors.RateLimitedError(
                    f"Rate limit exceeded: {count} messages at once are more "
                    f"than the burst of {self._burst} can ever let through; "
                    "send fewer at a time, or raise Config.max_enqueue_burst"
                )
            if count > self._tokens:
                wait_s = max(1, round((count - self._tokens) / self._per_second))
                raise errors.RateLimitedError(
                    f"Rate limit exceeded, retry after {wait_s}s; or raise Config.max_enqueue_per_second, "
                    "where None switches the limit off"
                )
            self._tokens -= count

    def status(self) -> RateLimitStatus:
        with self._lock:
            self._fill()
            return RateLimitStatus(int(self._tokens), self._per_second, self._burst)

    def _fill(self) -> None:
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._filled_at) * self._per_second)
        self._filled_at = now


def rate_limiter(limits: ValidationConfig, clock: Callable[[], float]) -> RateLimiter | None:
    if limits.max_enqueue_per_second is None or limits.max_enqueue_burst is None:
        return None
    return RateLimiter(max(1, limits.max_enqueue_per_second), max(1, limits.max_enqueue_burst), clock)
