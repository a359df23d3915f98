"""Where the database is and how it is used. A DSN holds a password, so what may be shown of one is decided here too."""

import enum
import os
import re
from collections.abc import Iterator, Mapping
from typing import Literal
from urllib.parse import quote, quote_plus, unquote, unquote_plus

from pgqrs.errors import ConfigError

Backend = Literal["postgres", "sqlite", "turso", "s3"]

DSN_VARIABLE = "PGQRS_DSN"
DSN_DEFAULT = "sqlite://pgqrs.db"
SCHEMES = "postgresql://, postgres://, sqlite:// (sqlite:///absolute, sqlite://relative, sqlite::memory:), turso://, s3://"
MASK = "***"


class DurabilityMode(enum.StrEnum):
    """When a write to an S3 store is in S3: before its call returns, or at the next `sync()`."""

    Durable = "durable"
    Local = "local"


class Config:
    """Settings, read and written as attributes. Nothing is looked up or connected to before `connect_with`.

    `repr` shows no password. A DSN of an unknown scheme raises ConfigError when `backend` is asked for.
    """

    def __init__(self, dsn: str, schema: str | None = None, max_connections: int | None = None) -> None:
        self.dsn = dsn
        self.schema = "public" if schema is None else schema
        self.max_connections = 16 if max_connections is None else max_connections
        self.connection_timeout_seconds: float = 30
        self.default_lock_time_seconds: float = 5
        self.default_max_batch_size = 100
        self.max_read_ct = 5
        self.heartbeat_interval_seconds: float = 5
        self.max_payload_size_bytes = 1024 * 1024
        self.max_string_length = 1024
        self.max_object_depth = 5
        self.forbidden_keys = ["__proto__", "constructor"]
        self.required_keys: list[str] = []
        # None on either switches the limit off.
        self.max_enqueue_per_second: int | None = 1000
        self.max_enqueue_burst: int | None = 50
        self.s3_mode = DurabilityMode.Durable
        self.s3_cache_dir = None

    @classmethod
    def from_dsn(cls, dsn: str) -> "Config":
        return cls(dsn)

    @property
    def backend(self) -> Backend:
        """Which database the DSN names. Raises ConfigError for an unknown scheme."""
        return backend_of(self.dsn)

    @property
    def schema(self) -> str:
        """Where the tables are on PostgreSQL. Raises ConfigError on assignment of what cannot name a schema."""
        return self._schema

    @schema.setter
    def schema(self, name: str) -> None:
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_$][A-Za-z0-9_$]{0,62}", name):
            raise ConfigError(
                f"{name!r} cannot name a schema: 1 to 63 letters, digits, '_' and '$', the first of them no digit"
            )
        self._schema = name

    @property
    def s3_cache_dir(self) -> str | None:
        """Where the local copy of an S3 store is. Raises ConfigError on assignment of a blank one."""
        return self._s3_cache_dir

    @s3_cache_dir.setter
    def s3_cache_dir(self, path: str | os.PathLike[str] | None) -> None:
        if path is not None and not os.fspath(path).strip():
            raise ConfigError("cache dir cannot be empty")
        self._s3_cache_dir = None if path is None else os.fspath(path)

    def to_dict(self) -> dict[str, object]:
        """Every setting, for another process of ours. Holds the password."""
        return {name.lstrip("_"): value for name, value in vars(self).items()}

    @classmethod
    def from_dict(cls, settings: Mapping[str, object]) -> "Config":
        config = cls(str(settings["dsn"]))
        for name, value in settings.items():
            setattr(config, name, value)
        return config

    def __repr__(self) -> str:
        return f"Config({redact(self.dsn)!r}, schema={self.schema!r}, max_connections={self.max_connections})"


def default_dsn(environ: Mapping[str, str]) -> str:
    """What is connected to when nobody says: PGQRS_DSN, else a SQLite file in the current folder."""
    return environ.get(DSN_VARIABLE) or DSN_DEFAULT


def backend_of(dsn: str) -> Backend:
    """Raises ConfigError for an unknown scheme."""
    scheme = dsn.partition("://")[0].lower() if "://" in dsn else ""
    if scheme.startswith(("postgres", "pg")):
        return "postgres"
    if scheme == "sqlite" or dsn == "sqlite::memory:":
        return "sqlite"
    if scheme == "turso":
        return "turso"
    if scheme == "s3":
        return "s3"
    raise ConfigError(
        f"{redact(dsn)!r} names no database that pgqrs knows; a DSN begins with one of {SCHEMES}"
    )


def sqlite_path(dsn: str) -> str:
    """The file that a sqlite DSN names, or ":memory:". Raises ConfigError.

    Percent signs stay as they are. Of the query that sqlx (behind 0.15) takes, `mode` is understood: rwc and rw are what
    happens anyway.
    """
    if dsn == "sqlite::memory:":
        return ":memory:"
    path, _, query = dsn.partition("://")[2].partition("?")
    if backend_of(dsn) != "sqlite" or not path:
        raise ConfigError(
            f"{redact(dsn)!r} names no SQLite file; use sqlite:///absolute, sqlite://relative or sqlite::memory:"
        )
    if query == "mode=memory":
        return ":memory:"
    if query not in ("", "mode=rwc", "mode=rw"):
        raise ConfigError(
            f"{redact(dsn)!r} asks SQLite for {query!r}; only ?mode=rwc, ?mode=rw and ?mode=memory are known"
        )
    return path


def conninfo(dsn: str) -> str:
    """A Postgres DSN as libpq takes it, which knows two of the scheme's many names."""
    return "postgresql://" + dsn.partition("://")[2] if backend_of(dsn) == "postgres" else dsn


# What may be shown


def redact(dsn: str) -> str:
    """A DSN without its password. Where it is unclear what belongs to the password, more goes rather than less."""
    shown, at = "", 0
    for start, end in _secrets(dsn):
        if start >= at:
            shown += dsn[at:start] + MASK
            at = end
    return shown + dsn[at:]


def scrub(text: str, dsn: str) -> str:
    """A text, such as a driver's error message, without the password of this DSN in any spelling.

    A password that is not percent-encoded as it must be reaches messages in pieces (libpq takes what follows an "@" for
    the host), so its pieces go as well.
    """
    forms: set[str] = set()
    for start, end in _secrets(dsn):
        for raw in {dsn[start:end], re.sub(r"\\(.)", r"\1", dsn[start:end].strip("'"))}:
            for plain in {raw, unquote(raw), unquote_plus(raw)}:
                forms |= {plain, quote(plain), quote(plain, safe=""), quote_plus(plain), repr(plain)[1:-1]}
                forms |= set(re.split(r"[@/:?#&=\s]+", plain))
    for form in sorted(filter(None, forms), key=len, reverse=True):
        # A very short one is only sought as a word of its own: it stands in the middle of others by chance.
        pattern = re.escape(form) if len(form) >= 4 else rf"(?<!\w){re.escape(form)}(?!\w)"
        text = re.sub(pattern, MASK, text)
    return text


_SECRET_KEY = re.compile(r"pass(word|phrase)|token|secret", re.IGNORECASE)
_CONNINFO_PART = re.compile(r"(\w+)\s*=\s*('(?:\\.|[^'\\])*'?|(?:\\.|[^\s\\])*)", re.DOTALL)
_QUERY_PART = re.compile(r"[?&]([^=&?]*)=([^&]*)")
_HOST_AND_PATH = re.compile(r"[^/:@]*(:\d*)?(,[^/:@]*(:\d*)?)*(/.*)?|\[.*", re.DOTALL)


def _secrets(dsn: str) -> Iterator[tuple[int, int]]:
    """Where in a DSN its passwords are, as (start, end), by start."""
    url = re.match(r"\s*[A-Za-z][\w+.-]*://", dsn)
    start = url.end() if url else 0
    found = [m.span(2) for m in _QUERY_PART.finditer(dsn, start) if _SECRET_KEY.search(unquote(m[1]))]
    found += _userinfo(dsn, start)  # also where the scheme was forgotten
    if url is None:
        found += [m.span(2) for m in _CONNINFO_PART.finditer(dsn) if _SECRET_KEY.search(m[1])]
    yield from sorted(span for span in found if span[0] < span[1])


def _userinfo(dsn: str, start: int) -> list[tuple[int, int]]:
    """The password in scheme://user:password@host. It may hold an unencoded "@", "/" or "?"."""
    query = re.search(r"\?\w+=", dsn[start:])
    end = start + query.start() if query else len(dsn)
    at = dsn.rfind("@", start, end)
    if at < 0:
        # None before the query: either there is no password, or what looks like the query is part of it.
        if _HOST_AND_PATH.fullmatch(dsn, start, end):
            return []
        at = dsn.rfind("@", start)
    colon = dsn.find(":", start, max(at, start))
    return [(colon + 1, at)] if colon >= 0 else []
