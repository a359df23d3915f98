"""The table of the settings of a Config: the values that each setting accepts, its environment
variable, and its meaning.

`config.Config` checks and reads its attributes by this table. docs/reference/settings.md is
generated from it. The default of a setting is in the signature of `Config`, where editors and type
checkers see it.
"""

from collections.abc import Callable

from msgspec import Struct

from pgqrs.model.bounds import DURATION_S_MAX
from pgqrs.model.states import Named


class DurabilityMode(Named):
    """When a write to an S3 store reaches S3: before its call returns, or at the next `sync()`."""

    Durable = "durable"
    Local = "local"


class Kind(Struct, frozen=True):
    """The values that a setting accepts, and how a value is read from text. `rule` describes in
    words what `fits` checks. If `read` refuses a text with ValueError, `say` is the advice for it.
    """

    fits: Callable[[object], bool]
    rule: str
    read: Callable[[str], object] = str
    say: str = ""


class Setting(Struct, frozen=True):
    """One row of the table. `variable` lacks its prefix PGQRS_. With `unless_given`, a Config
    object has the setting only if it was given; otherwise the class has the default.
    """

    name: str
    kind: Kind
    meaning: str
    variable: str | None = None
    may_be_none: bool = False
    unless_given: bool = False


def at_least(least: int) -> Kind:
    return Kind(
        lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least,
        f"is a whole number of at least {least}",
        int,
        "say a whole number",
    )


def _is_seconds(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= DURATION_S_MAX


def _is_list_of_text(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(v, str) for v in value)


def _switched(text: str) -> bool:
    words = {"1": True, "true": True, "yes": True, "on": True}
    words |= {"0": False, "false": False, "no": False, "off": False}
    if text.lower() not in words:
        raise ValueError(text)
    return words[text.lower()]


TEXT = Kind(lambda value: isinstance(value, str), "is text")
ANY = Kind(lambda value: True, "")  # the attribute's own property checks it
SECONDS = Kind(
    _is_seconds,
    f"is a number of seconds from 0 to {DURATION_S_MAX:.0f} (a hundred years)",
    float,
    "say a number of seconds",
)
LIST = Kind(_is_list_of_text, "is a list of text")
SWITCH = Kind(lambda value: True, "", _switched, "say true or false")
SWITCH_OR_NONE = Kind(
    lambda value: isinstance(value, bool),
    "is True, False or None (unless pooled)",
    _switched,
    "say true or false",
)
MODE = Kind(
    lambda value: value in list(DurabilityMode),
    "is DurabilityMode.Durable or DurabilityMode.Local",
    lambda text: DurabilityMode(text.lower()),
    "say durable or local",
)

SETTINGS = {
    s.name: s
    for s in (
        Setting("dsn", TEXT, "The database. See [backends](../backends.md).", "DSN"),
        Setting("schema", ANY, "The schema of the tables on PostgreSQL. It must exist.", "SCHEMA"),
        Setting(
            "max_connections",
            at_least(1),
            "The largest number of connections that a program opens to PostgreSQL.",
            "MAX_CONNECTIONS",
        ),
        Setting(
            "connection_timeout_seconds",
            SECONDS,
            "How long a call waits for a free connection.",
            "CONNECTION_TIMEOUT",
        ),
        Setting(
            "default_lock_time_seconds",
            SECONDS,
            "How long `dequeue()` holds a message. Unset, `dequeue()` holds a message for 30 s.",
            "DEFAULT_LOCK_TIME",
            may_be_none=True,
        ),
        Setting(
            "default_max_batch_size",
            at_least(1),
            "The number of messages that a consumer takes at a time, unless the call names a number.",
            "DEFAULT_BATCH_SIZE",
        ),
        Setting(
            "max_read_ct",
            at_least(1),
            "The number of deliveries of a plain message before the message is dead.",
            "MAX_READ_CT",
        ),
        Setting(
            "heartbeat_interval_seconds",
            SECONDS,
            "How often a consumer that polls renews its heartbeat.",
            "HEARTBEAT_INTERVAL",
        ),
        Setting(
            "poll_interval_ms",
            at_least(1),
            "How often a consumer that polls looks for messages.",
            "POLL_INTERVAL_MS",
        ),
        Setting("max_payload_size_bytes", at_least(1), "The largest payload, argument or result, as JSON."),
        Setting(
            "max_string_length", at_least(0), "Producers of the 0.15 API: the longest text in a payload."
        ),
        Setting(
            "max_object_depth", at_least(0), "Producers of the 0.15 API: the deepest nesting of a payload."
        ),
        Setting("forbidden_keys", LIST, "Producers of the 0.15 API: keys that a payload must not have."),
        Setting("required_keys", LIST, "Producers of the 0.15 API: keys that a payload must have."),
        Setting(
            "max_enqueue_per_second",
            at_least(1),
            "Producers of the 0.15 API: the rate of one producer. `None` switches the limit off.",
            may_be_none=True,
        ),
        Setting(
            "max_enqueue_burst",
            at_least(1),
            "Producers of the 0.15 API: messages that may exceed the rate at once. "
            "`None` switches the limit off.",
            may_be_none=True,
        ),
        Setting(
            "reclaim_after_seconds",
            SECONDS,
            "A supervisor takes over messages that pgqrs 0.15 clients have held for this time after "
            "their lock expired. `None`: never.",
            "RECLAIM_AFTER",
            may_be_none=True,
        ),
        Setting("sqlite_use_wal", SWITCH, "Whether SQLite uses a write-ahead log.", "SQLITE_USE_WAL"),
        Setting(
            "prepared_statements",
            SWITCH_OR_NONE,
            "Whether prepared statements are used on PostgreSQL. `None`: unless there is a "
            "[connection pooler](../pgbouncer.md).",
            "PREPARED_STATEMENTS",
            may_be_none=True,
            unless_given=True,
        ),
        Setting(
            "listen_dsn",
            TEXT,
            "A direct connection on which a supervisor listens, if `dsn` leads through a "
            "[connection pooler](../pgbouncer.md).",
            "LISTEN_DSN",
            may_be_none=True,
            unless_given=True,
        ),
        Setting(
            "s3_mode",
            MODE,
            "When a write is in S3: `durable` (before its call returns) or `local` (at the next `sync()`).",
            "S3_MODE",
        ),
        Setting(
            "s3_cache_dir",
            ANY,
            "The folder of the local copy of an S3 object. `None`: a folder in the user's cache.",
            "S3_CACHE_DIR",
        ),
    )
}
