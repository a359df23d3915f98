"""`connect`: one call for both stores, and the keyword chooses."""

import warnings
from collections.abc import Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, NoReturn

from pgqrs.clients import aio, blocking
from pgqrs.config import Config
from pgqrs.store.waiting import Threads


def connect(dsn: str | None = None) -> "Connecting":
    """A store on the database that `dsn` names.

    `await connect(dsn)` and `async with connect(dsn) as store:` give an async store, `with connect(dsn) as store:` and
    `connect(dsn).open()` a blocking one; nothing happens before.

    Settings are found as the command line finds them (`Config.load`): this DSN beats the environment's PGQRS_ variables,
    these beat the file pgqrs.toml, and the file beats the defaults. Without any DSN, the database is ./pgqrs.db (SQLite).
    `connect_with` takes all settings from the program instead. Raises ConfigError for a DSN that names no database and for
    a setting that cannot be, PgqrsConnectionError when the database cannot be reached (not at the first query).
    """
    return Connecting(lambda: Config.load(dsn))


def connect_with(config: Config) -> "Connecting":
    """The same with these settings, all of which are explicit: neither the environment nor a file is read. For the settings
    that the command line would use, give it `Config.load()`. Raises TypeError for anything but a Config."""
    if not isinstance(config, Config):
        raise TypeError(f"connect_with takes a Config, not {type(config).__name__}; for a DSN: connect(dsn)")
    return Connecting(lambda: config)


class Connecting(Coroutine[Any, Any, aio.Store]):
    """A connection to be made, once: a coroutine, and both kinds of context manager."""

    def __init__(self, config: Callable[[], Config]) -> None:
        self._config = config
        self._used = False
        self._awaited: Coroutine[Any, Any, aio.Store] | None = None
        self._opened: blocking.Store | aio.Store | None = None

    def open(self) -> blocking.Store:
        """A blocking store, to be closed by the caller."""
        self._used = True
        return blocking.Store(self._config()).open()

    # As a coroutine

    def __await__(self) -> Generator[Any, Any, aio.Store]:
        return self._coroutine().__await__()

    def send(self, value: Any) -> Any:
        return self._coroutine().send(value)

    def throw(self, *error: Any) -> Any:
        return self._coroutine().throw(*error)

    def close(self) -> None:
        self._coroutine().close()

    def _coroutine(self) -> Coroutine[Any, Any, aio.Store]:
        self._used = True
        if self._awaited is None:
            self._awaited = self._connect()
        return self._awaited

    async def _connect(self) -> aio.Store:
        core = blocking.Store(self._config())
        store = aio.Store(core)
        # Not on the store's own threads: as many stores as one likes may be connecting at once.
        await Threads(1, core.config.connection_timeout_seconds).claim(
            core.open, lambda opened: opened.close()
        )
        return store

    # Whoever forgets

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            f"connect() has connected to nothing yet, so there is no {name!r}: `await` it, use `with` or `async with`, or .open() it"
        )

    def __del__(self) -> None:
        if not self._used:
            warnings.warn(
                "pgqrs.connect() was never awaited, entered or opened: it has connected to nothing",
                RuntimeWarning,
                stacklevel=2,
            )

    # As a context manager

    def __enter__(self) -> blocking.Store:
        self._opened = store = self.open()
        return store

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(self._opened, blocking.Store):
            self._opened.close()

    async def __aenter__(self) -> aio.Store:
        self._opened = store = await self
        return store

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(self._opened, aio.Store):
            await self._opened.close()
