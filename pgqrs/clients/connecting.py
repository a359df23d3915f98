"""`connect`: returns a blocking or an async store, depending on how the program uses the result."""

import warnings
from collections.abc import Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, NoReturn

from pgqrs.clients import aio, blocking
from pgqrs.config import Config
from pgqrs.store.waiting import Threads


def connect(dsn: str | None = None) -> "Connecting":
    """Returns a connection to the database that `dsn` names. The connection is made when a program
    enters or awaits it.

    `await connect(dsn)` and `async with connect(dsn) as store:` give an async store. `with
    connect(dsn) as store:` and `connect(dsn).open()` give a blocking store.

    Settings are looked up in the same order as by the command line (`Config.load`): `dsn`, the
    PGQRS_ environment variables, the file pgqrs.toml, the defaults. Without a DSN, the database is
    the SQLite file ./pgqrs.db. To take all settings from the program instead, use `connect_with`.

    Connecting raises ConfigError for an invalid DSN or setting, and PgqrsConnectionError if the
    database cannot be reached.
    """
    return Connecting(lambda: Config.load(dsn))


def connect_with(config: Config) -> "Connecting":
    """Returns a connection like `connect`, with the settings of `config` alone. Reads neither the
    environment nor a file.

    Pass `Config.load()` to use the settings of the command line. Raises TypeError if `config` is
    not a Config.
    """
    if not isinstance(config, Config):
        raise TypeError(f"connect_with takes a Config, not {type(config).__name__}; for a DSN: connect(dsn)")
    return Connecting(lambda: config)


class Connecting(Coroutine[Any, Any, aio.Store]):
    """A connection that has not been made yet: a coroutine, and both kinds of context manager."""

    def __init__(self, config: Callable[[], Config]) -> None:
        self._config = config
        self._used = False
        self._awaited: Coroutine[Any, Any, aio.Store] | None = None
        self._opened: blocking.Store | aio.Store | None = None

    def open(self) -> blocking.Store:
        """Connects, and returns a blocking store. The caller closes it."""
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
        # Each connection uses a thread of its own, so that any number of stores can connect at the
        # same time.
        await Threads(1, core.config.connection_timeout_seconds).claim(
            core.open, lambda opened: opened.close()
        )
        return store

    # If the caller forgets to await, enter or open it

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            "connect() has connected to nothing yet, so there is no "
            f"{name!r}: `await` it, use `with` or `async with`, or .open() it"
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
