"""How often a step is retried, and how long each retry waits."""

from collections.abc import Callable

from msgspec import Struct

from pgqrs.arguments import durations
from pgqrs.arguments.durations import Duration
from pgqrs.errors import ValidationError

# A larger number is as good as endless.
RETRIES_MAX = 1_000_000
JITTER = 0.25
JITTERED_DELAY_S_MIN = 1.0


class BackoffStrategy(Struct, frozen=True):
    """The delay before a retry. Create one with `fixed`, `exponential` or
    `exponential_with_jitter`.
    """

    base_s: float
    max_s: float
    factor: float = 1.0
    jitter: float = 0.0
    min_s: float = 0.0

    @classmethod
    def fixed(cls, delay_seconds: Duration) -> "BackoffStrategy":
        """The same delay before every retry. 0 retries at once."""
        delay_s = durations.seconds(delay_seconds)
        return cls(delay_s, delay_s)

    @classmethod
    def exponential(cls, base_seconds: Duration = 1.0, max_seconds: Duration = 60.0) -> "BackoffStrategy":
        """The delay starts with `base_seconds`, and doubles for each retry, up to `max_seconds`."""
        return cls(*_bounds(base_seconds, max_seconds), factor=2.0)

    @classmethod
    def exponential_with_jitter(
        cls, base_seconds: Duration = 1.0, max_seconds: Duration = 60.0
    ) -> "BackoffStrategy":
        """The delay of `exponential` with random jitter of ±25 %, so that steps that failed
        together are not retried together. The delay is never over `max_seconds`. It is never under
        1 s, unless `max_seconds` is.
        """
        base_s, max_s = _bounds(base_seconds, max_seconds)
        return cls(base_s, max_s, factor=2.0, jitter=JITTER, min_s=min(JITTERED_DELAY_S_MIN, max_s))

    def __repr__(self) -> str:
        """Returns the text that 0.15 shows."""
        if self.factor == 1.0:
            return f"Fixed {{ delay_seconds: {self.base_s:g} }}"
        name = "ExponentialWithJitter" if self.jitter else "Exponential"
        return f"{name} {{ base_seconds: {self.base_s:g}, max_seconds: {self.max_s:g} }}"

    def delay(self, attempt: int, random: Callable[[], float]) -> float:
        """Returns the seconds to wait before retry number `attempt`, counted from 1. `random`
        returns 0.0 to 1.0.
        """
        # From 2 ** 64 on, every delay exceeds its maximum, and a float would soon overflow.
        delay_s = min(self.base_s * self.factor ** min(attempt - 1, 64), self.max_s)
        if self.jitter:
            delay_s *= 1 + self.jitter * (2 * random() - 1)
        return min(max(delay_s, self.min_s), self.max_s)


class StepRetryPolicy(Struct, frozen=True):
    """At most `max_attempts` retries after the first attempt, separated by `backoff`. If `backoff`
    is None, the delay is exponential from 1 s to 60 s, with jitter.
    """

    max_attempts: int = 3
    backoff: BackoffStrategy | None = None

    def __post_init__(self) -> None:
        count = self.max_attempts
        if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= RETRIES_MAX:
            raise ValidationError(
                f"{count!r} is no number of retries: give 0 (never) "
                f"to {RETRIES_MAX:,}, which come after the first try"
            )
        if self.backoff is not None and not isinstance(self.backoff, BackoffStrategy):
            raise ValidationError(
                f"{self.backoff!r} is no back-off: give BackoffStrategy.fixed(5) or one of its kind"
            )

    def __repr__(self) -> str:
        return (
            f"StepRetryPolicy(max_attempts={self.max_attempts}, backoff={self.backoff or DEFAULT_BACKOFF!r})"
        )

    def delay(self, attempt: int, random: Callable[[], float]) -> float:
        """Returns the seconds to wait before retry number `attempt`, counted from 1."""
        return (self.backoff or DEFAULT_BACKOFF).delay(attempt, random)


def policy(retry: int | StepRetryPolicy | None) -> StepRetryPolicy:
    """Converts the argument of `@step(retry=…)` to a policy. None and 0 mean no retry. Raises
    ValidationError.
    """
    if isinstance(retry, StepRetryPolicy):
        return retry
    return NO_RETRY if retry is None else StepRetryPolicy(max_attempts=retry)


def _bounds(base: Duration, max: Duration) -> tuple[float, float]:
    base_s, max_s = durations.seconds(base), durations.seconds(max)
    if base_s > max_s:
        raise ValidationError(
            f"a back-off cannot begin at {durations.text(base_s)} and end at {durations.text(max_s)}"
        )
    return base_s, max_s


DEFAULT_BACKOFF = BackoffStrategy.exponential_with_jitter()
NO_RETRY = StepRetryPolicy(max_attempts=0)
