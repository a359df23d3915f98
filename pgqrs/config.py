"""Settings: which database to use, and how. A DSN may contain a password, so this module also
removes passwords from text.
"""

import difflib
import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, quote_plus, unquote, unquote_plus

from pgqrs.errors import ConfigError
from pgqrs.program.interpreter import DSN_VARIABLE as DSN_VARIABLE
from pgqrs.program.interpreter import dsn_of
from pgqrs.settings import SETTINGS, TEXT
from pgqrs.settings import DurabilityMode as DurabilityMode

Backend = Literal["postgres", "sqlite", "turso", "s3"]

DSN_DEFAULT = "sqlite://pgqrs.db"
FILE_VARIABLE = "PGQRS_CONFIG_FILE"
# Looked up in the current folder.
FILES = ("pgqrs.toml", "pgqrs.yaml", "pgqrs.yml", "pgqrs.json")
SCHEMES = (
    "postgresql://, postgres://, sqlite:// (sqlite:///absolute, sqlite://relative, sqlite::memory:), "
    "turso:// (as sqlite://), s3://bucket/key"
)
TURSO_SHARED = "experimental=multiprocess_wal"
MASK = "***"
# The default of this setting in 0.15, whose dequeue() ignored the setting.
LOCK_TIME_SECONDS = 5
# What dequeue() of 0.15 used instead. This version uses it unless the setting is given.
DEQUEUE_LOCK_SECONDS = 30


class Config:
    """The settings of a store or a supervisor: keyword arguments, readable and writable as
    attributes.

    `Config.load` looks up each setting in this order: explicit values, environment variables, the
    configuration file, defaults. `pgqrs.connect` and the command line call `Config.load`. A Config
    that is created with this constructor reads neither the environment nor a file, and
    `connect_with` uses it unchanged.

    `repr` does not show the password. Creating a Config, and assigning to its attributes, raise
    ConfigError for an invalid value. A DSN with an unknown scheme raises it when `backend` is read.
    Creating a Config does not connect to the database.
    """

    dsn: str
    max_connections: int
    connection_timeout_seconds: float
    default_max_batch_size: int
    max_read_ct: int
    heartbeat_interval_seconds: float
    poll_interval_ms: int
    max_payload_size_bytes: int
    max_string_length: int
    max_object_depth: int
    forbidden_keys: list[str]
    required_keys: list[str]
    max_enqueue_per_second: int | None
    max_enqueue_burst: int | None
    reclaim_after_seconds: float | None
    sqlite_use_wal: bool
    s3_mode: DurabilityMode

    # PostgreSQL: None means that prepared statements are used unless there is a pooler in between.
    prepared_statements: bool | None = None
    # PostgreSQL: where a supervisor listens if its DSN leads through a pooler. None means that it
    # listens on the DSN itself, or polls.
    listen_dsn: str | None = None

    def __init__(
        self,
        dsn: str,
        schema: str | None = None,
        max_connections: int | None = None,
        *,
        connection_timeout_seconds: float = 30,
        default_lock_time_seconds: float | None = None,
        default_max_batch_size: int = 100,
        max_read_ct: int = 5,
        heartbeat_interval_seconds: float = 5,
        poll_interval_ms: int = 100,
        max_payload_size_bytes: int = 1024 * 1024,
        max_string_length: int = 1024,
        max_object_depth: int = 5,
        forbidden_keys: Sequence[str] = ("__proto__", "constructor"),
        required_keys: Sequence[str] = (),
        max_enqueue_per_second: int | None = 1000,
        max_enqueue_burst: int | None = 50,
        reclaim_after_seconds: float | None = None,
        sqlite_use_wal: bool = True,
        prepared_statements: bool | None = None,
        listen_dsn: str | None = None,
        s3_mode: DurabilityMode | str = DurabilityMode.Durable,
        s3_cache_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        self.dsn = dsn
        self.schema = "public" if schema is None else schema
        self.max_connections = 16 if max_connections is None else max_connections
        self.connection_timeout_seconds = connection_timeout_seconds
        self.default_lock_time_seconds = default_lock_time_seconds
        self.default_max_batch_size = default_max_batch_size
        self.max_read_ct = max_read_ct
        self.heartbeat_interval_seconds = heartbeat_interval_seconds
        self.poll_interval_ms = poll_interval_ms
        self.max_payload_size_bytes = max_payload_size_bytes
        self.max_string_length = max_string_length
        self.max_object_depth = max_object_depth
        self.forbidden_keys = forbidden_keys  # type: ignore[assignment]  # assignment converts it to a list
        self.required_keys = required_keys  # type: ignore[assignment]
        # None in either setting switches the rate limit off.
        self.max_enqueue_per_second = max_enqueue_per_second
        self.max_enqueue_burst = max_enqueue_burst
        # A supervisor takes over messages held by a client of pgqrs 0.15 this long after their vt.
        # None: never.
        self.reclaim_after_seconds = reclaim_after_seconds
        self.sqlite_use_wal = sqlite_use_wal
        if prepared_statements is not None:
            self.prepared_statements = prepared_statements
        if listen_dsn is not None:
            self.listen_dsn = listen_dsn
        self.s3_mode = s3_mode  # type: ignore[assignment]  # assignment converts it to a DurabilityMode
        self.s3_cache_dir = s3_cache_dir

    def __setattr__(self, name: str, value: Any) -> None:
        _refuse_misfit(name, value)
        if name == "s3_mode":
            value = DurabilityMode(value)
        if isinstance(value, list | tuple):
            value = list(value)
        super().__setattr__(name, value)

    @classmethod
    def from_dsn(cls, dsn: str) -> "Config":
        """Returns the default settings for a database. Reads neither the environment nor a file."""
        return cls(dsn)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> "Config":
        """Returns the settings of the PGQRS_ environment variables. All other settings have their
        defaults. Raises ConfigError, which names the variable.
        """
        return cls._of(_of_environment(os.environ if environ is None else environ))

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> "Config":
        """Returns the settings of a file. All other settings have their defaults. The file's ending
        selects TOML, JSON or YAML (which needs PyYAML). Raises ConfigError, which names the file.
        """
        return cls._of(_of_file(Path(path)))

    @classmethod
    def load(cls, dsn: str | None = None, schema: str | None = None, **explicit: Any) -> "Config":
        """Returns the settings that `pgqrs.connect` and the command line use.

        Arguments override environment variables, which override the configuration file, which
        overrides the defaults. `PGQRS_CONFIG_FILE` names the file. Without it, the file is the
        first of pgqrs.toml, pgqrs.yaml, pgqrs.yml and pgqrs.json that exists in the current folder.

        None counts as not given. For a few settings, such as the rate limit, None switches the
        setting off. Raises ConfigError, which names the file or the variable.
        """
        named = os.environ.get(FILE_VARIABLE)
        file = Path(named) if named else next((p for p in map(Path, FILES) if p.is_file()), None)
        given = {"dsn": dsn, "schema": schema} | explicit
        return cls._of(
            (_of_file(file) if file else {})
            | _of_environment(os.environ)
            | {
                name: value
                for name, value in given.items()
                if value is not None or (name in SETTINGS and SETTINGS[name].may_be_none)
            }
        )

    @classmethod
    def _of(cls, settings: Mapping[str, object]) -> "Config":
        return cls.from_dict({"dsn": DSN_DEFAULT} | dict(settings))

    @property
    def default_lock_time_seconds(self) -> float:
        """The lock time in seconds. Defaults to 5, as in 0.15. See `lock_s`."""
        return (
            LOCK_TIME_SECONDS if self._default_lock_time_seconds is None else self._default_lock_time_seconds
        )

    @default_lock_time_seconds.setter
    def default_lock_time_seconds(self, seconds: float | None) -> None:
        self._default_lock_time_seconds = seconds

    @property
    def lock_s(self) -> float:
        """How long dequeue() holds messages by default: `default_lock_time_seconds` if given, else
        30 s.
        """
        given = self._default_lock_time_seconds
        return DEQUEUE_LOCK_SECONDS if given is None else given

    @property
    def backend(self) -> Backend:
        """The kind of database that the DSN names. Raises ConfigError for an unknown scheme."""
        return backend_of(self.dsn)

    @property
    def embedded(self) -> bool:
        """Whether the database is a form of SQLite inside this process. The first write to such a
        database creates its schema. Raises ConfigError for an unknown scheme.
        """
        return self.backend != "postgres"

    @property
    def schema(self) -> str:
        """The schema of the tables on PostgreSQL. Assigning an invalid name raises ConfigError."""
        return self._schema

    @schema.setter
    def schema(self, name: str) -> None:
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_$][A-Za-z0-9_$]{0,62}", name):
            raise ConfigError(
                f"{name!r} cannot name a schema: 1 to 63 letters, "
                "digits, '_' and '$', the first of them no digit"
            )
        self._schema = name

    @property
    def s3_cache_dir(self) -> str | None:
        """The folder for the local copy of an S3 store. Assigning a blank path raises ConfigError."""
        return self._s3_cache_dir

    @s3_cache_dir.setter
    def s3_cache_dir(self, path: str | os.PathLike[str] | None) -> None:
        if path is not None and not os.fspath(path).strip():
            raise ConfigError("cache dir cannot be empty")
        self._s3_cache_dir = None if path is None else os.fspath(path)

    def to_dict(self) -> dict[str, object]:
        """Returns every setting as a dict, for another process of pgqrs. The settings in
        `unless_given` are included only if they were given. The dict contains the password.
        """
        return {name.lstrip("_"): value for name, value in vars(self).items()}

    @classmethod
    def from_dict(cls, settings: Mapping[str, object]) -> "Config":
        """Creates a Config from the result of `to_dict`, or from any settings by attribute name,
        including `dsn`. Raises ConfigError for an invalid value.
        """
        config = cls(str(settings["dsn"]))
        for name, value in settings.items():
            setattr(config, name, value)
        return config

    def __repr__(self) -> str:
        return f"Config({redact(self.dsn)!r}, schema={self.schema!r}, max_connections={self.max_connections})"


def _refuse_misfit(name: str, value: object) -> None:
    if not hasattr(Config, name) and name not in Config.__annotations__ and not name.startswith("_"):
        near = difflib.get_close_matches(
            name, [n for n in vars(Config) | Config.__annotations__ if n[0] != "_"], 1
        )
        raise AttributeError(f"Config has no setting {name!r}" + (f"; is it {near[0]}?" if near else ""))
    setting = SETTINGS.get(name)
    if setting is None or setting.kind.fits(value) or (value is None and setting.may_be_none):
        return
    if setting.kind is TEXT:  # a DSN holds a password
        raise ConfigError(f"a {name} is text, not {type(value).__name__}")
    raise ConfigError(f"{name} {setting.kind.rule}, not {value!r}")


def _of_environment(environ: Mapping[str, str]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, setting in SETTINGS.items():
        if setting.variable is not None:
            variable = f"PGQRS_{setting.variable}"
            if text := dsn_of(environ) if name == "dsn" else environ.get(variable, ""):
                found[name] = _checked(variable, name, text)
    return found


def _checked(source: str, name: str, value: object) -> object:
    """Checks and converts a setting that was written as text. Raises ConfigError, which names the
    source.
    """
    try:
        read = _read(name, value) if isinstance(value, str) else value
        setattr(Config(DSN_DEFAULT), name, read)
    except ConfigError as e:
        raise ConfigError(f"{source}: {e}") from None
    except ValueError as e:
        raise ConfigError(f"{source}: {name} cannot be {value!r}; {e}") from None
    return read


def _of_file(path: Path) -> dict[str, object]:
    try:
        settings = _parsed(path)
    except OSError as e:
        raise ConfigError(f"the configuration file {path} cannot be read: {e.strerror}") from e
    except ValueError as e:
        raise ConfigError(f"the configuration file {path} is malformed: {e}") from e
    if not isinstance(settings, dict):
        raise ConfigError(f"the configuration file {path} holds no settings: name = value is expected")
    if unknown := sorted(settings.keys() - SETTINGS.keys()):
        raise ConfigError(
            f"the configuration file {path} has the unknown setting "
            f"{unknown[0]!r}; known are {', '.join(sorted(SETTINGS))}"
        )
    return {k: _checked(f"the configuration file {path}", k, v) for k, v in settings.items()}


def _parsed(path: Path) -> Any:
    text = path.read_text()
    match path.suffix.lower():
        case ".toml":
            return tomllib.loads(text)
        case ".json":
            return json.loads(text)
        case ".yaml" | ".yml":
            try:
                import yaml  # type: ignore[import-untyped,unused-ignore]
            except ImportError:
                raise ConfigError(
                    f"reading {path} takes PyYAML: pip install "
                    "'pgqrs[yaml]', or write the settings to pgqrs.toml"
                ) from None
            try:
                return yaml.safe_load(text) or {}
            except yaml.YAMLError as e:
                raise ValueError(str(e)) from e
        case ending:
            raise ConfigError(
                f"{path} ends with {ending!r}; a configuration file ends with .toml, .yaml, .yml or .json"
            )


def _read(name: str, text: str) -> object:
    """Converts the text of a setting. Raises ValueError."""
    kind = SETTINGS[name].kind
    try:
        return kind.read(text)
    except ValueError:
        raise ValueError(kind.say) from None


def backend_of(dsn: str) -> Backend:
    """Returns the kind of database that a DSN names. Raises ConfigError for an unknown scheme. A
    new backend needs a scheme here, and an entry in `open_database` (pgqrs/store/__init__.py).
    """
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
    """Returns the file that a sqlite DSN names, or ":memory:". Raises ConfigError.

    Percent signs are not decoded. Of the query parameters that 0.15 accepts, only `mode` is
    supported. Its values rwc and rw describe the normal behaviour, and memory means ":memory:".
    """
    if dsn == "sqlite::memory:":
        return ":memory:"
    path, _, query = dsn.partition("://")[2].partition("?")
    if "\0" in path:
        raise ConfigError(f"{redact(dsn)!r} names no SQLite file: it holds a NUL")
    if backend_of(dsn) != "sqlite" or not path:
        raise ConfigError(
            f"{redact(dsn)!r} names no SQLite file; use "
            "sqlite:///absolute, sqlite://relative or sqlite::memory:"
        )
    if query == "mode=memory":
        return ":memory:"
    if query not in ("", "mode=rwc", "mode=rw"):
        raise ConfigError(
            f"{redact(dsn)!r} asks SQLite for {query!r}; only ?mode=rwc, ?mode=rw and ?mode=memory are known"
        )
    return path


def turso_file(dsn: str) -> tuple[str, bool]:
    """Returns the file that a turso DSN names, and whether several processes may open it (an
    experimental feature of the driver). Raises ConfigError.
    """
    path, _, query = dsn.partition("://")[2].partition("?")
    if backend_of(dsn) != "turso" or not path or "\0" in path or path == ":memory:":
        raise ConfigError(
            f"{redact(dsn)!r} names no Turso file; use turso:///absolute "
            "or turso://relative (in memory: sqlite::memory:)"
        )
    if query not in ("", TURSO_SHARED):
        raise ConfigError(f"{redact(dsn)!r} asks Turso for {query!r}; only ?{TURSO_SHARED} is known")
    return path, query == TURSO_SHARED


def s3_object(dsn: str) -> tuple[str, str]:
    """Returns the bucket and the key that an s3 DSN names. Raises ConfigError."""
    bucket, _, key = dsn.partition("://")[2].partition("/")
    if backend_of(dsn) != "s3" or not bucket or not key or set("?#@") & set(dsn) or not dsn.isprintable():
        raise ConfigError(f"{redact(dsn)!r} names no object of S3; use s3://bucket/key")
    if not re.fullmatch(r"[\w.-]+", bucket, re.A):
        raise ConfigError(f"{redact(dsn)!r} names no object of S3: no bucket has such a name")
    if {"", ".", ".."} & set(key.split("/")):
        raise ConfigError(f"{redact(dsn)!r} names no object of S3: a part of the key is empty, . or ..")
    return bucket, key


def database_file(dsn: str) -> str | None:
    """Returns the local file that a DSN names, or None for a database in memory, on a server or on S3."""
    if backend_of(dsn) == "turso":
        return turso_file(dsn)[0]
    path = sqlite_path(dsn) if backend_of(dsn) == "sqlite" else ":memory:"
    return None if path == ":memory:" else path


def conninfo(dsn: str) -> str:
    """Converts a PostgreSQL DSN for libpq, which knows only two of the scheme names that pgqrs
    accepts.
    """
    return "postgresql://" + dsn.partition("://")[2] if backend_of(dsn) == "postgres" else dsn


# Redacting passwords


def redact(dsn: str) -> str:
    """Returns a DSN without its password. If it is unclear where the password ends, more text is
    hidden.
    """
    shown, at = "", 0
    for start, end in _secrets(dsn):
        if start >= at:
            shown += dsn[at:start] + MASK
            at = end
    return shown + dsn[at:]


def scrub(text: str, dsn: str) -> str:
    """Removes the password of a DSN, in any spelling, from a text such as a driver's error message.

    If a password is not percent-encoded correctly, libpq takes the text after an "@" for the host.
    Parts of the password may then appear in its messages, so the parts are removed as well.
    """
    forms: set[str] = set()
    for start, end in _secrets(dsn):
        for raw in {dsn[start:end], re.sub(r"\\(.)", r"\1", dsn[start:end].strip("'"))}:
            for plain in {raw, unquote(raw), unquote_plus(raw)}:
                forms |= {plain, quote(plain), quote(plain, safe=""), quote_plus(plain), repr(plain)[1:-1]}
                forms |= set(re.split(r"[@/:?#&=\s]+", plain))
    for form in sorted(filter(None, forms), key=len, reverse=True):
        # A very short part is removed only as a separate word, because it may appear inside others
        # by chance.
        pattern = re.escape(form) if len(form) >= 4 else rf"(?<!\w){re.escape(form)}(?!\w)"
        text = re.sub(pattern, MASK, text)
    return text


def scrub_errors(error: BaseException, dsn: str) -> None:
    """Removes the password from an exception of the driver, and from the causes of the exception,
    which a traceback shows.
    """
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        one.args = tuple(scrub(arg, dsn) if isinstance(arg, str) else arg for arg in one.args)
        notes = getattr(one, "__notes__", None)
        if notes:
            one.__notes__ = [scrub(note, dsn) if isinstance(note, str) else note for note in notes]
        waiting += [one.__cause__, one.__context__]


_SECRET_KEY = re.compile(r"pass(word|phrase)|token|secret", re.IGNORECASE)
_CONNINFO_PART = re.compile(r"(\w+)\s*=\s*('(?:\\.|[^'\\])*'?|(?:\\.|[^\s\\])*)", re.DOTALL)
_QUERY_PART = re.compile(r"[?&]([^=&?]*)=([^&]*)")
_HOST_AND_PATH = re.compile(r"[^/:@]*(:\d*)?(,[^/:@]*(:\d*)?)*(/.*)?|\[.*", re.DOTALL)


def _secrets(dsn: str) -> Iterator[tuple[int, int]]:
    """Yields the positions (start, end) of the passwords in a DSN, in order."""
    url = re.match(r"\s*[A-Za-z][\w+.-]*://", dsn)
    start = url.end() if url else 0
    found = [m.span(2) for m in _QUERY_PART.finditer(dsn, start) if _SECRET_KEY.search(unquote(m[1]))]
    # This also covers a DSN whose scheme was forgotten.
    found += _userinfo(dsn, start)
    if url is None:
        found += [m.span(2) for m in _CONNINFO_PART.finditer(dsn) if _SECRET_KEY.search(m[1])]
    yield from sorted(span for span in found if span[0] < span[1])


def _userinfo(dsn: str, start: int) -> list[tuple[int, int]]:
    """Returns the position of the password in scheme://user:password@host. The password may contain
    an unencoded "@", "/" or "?".
    """
    query = re.search(r"\?\w+=", dsn[start:])
    end = start + query.start() if query else len(dsn)
    at = dsn.rfind("@", start, end)
    if at < 0:
        # There is no "@" before the query. Either there is no password, or the apparent query is
        # part of it.
        if _HOST_AND_PATH.fullmatch(dsn, start, end):
            return []
        at = dsn.rfind("@", start)
    colon = dsn.find(":", start, max(at, start))
    return [(colon + 1, at)] if colon >= 0 else []
