"""How a supervisor hears that there may be something new. Only a hint: it polls all the same, ever more slowly."""

import contextlib
import threading
from pathlib import Path
from typing import Protocol

from pgqrs import errors
from pgqrs.config import Config, sqlite_path, turso_file
from pgqrs.store import open_database

SQLITE_LOOK_S = 0.004
S3_HINT_LOOK_S = 0.01  # at a file's time
S3_LOOK_S = 1.0  # at 0.4 cents for 10,000 such requests, 3.5 cents a day


class Watch(Protocol):
    interval_s: float | None  # how often to call `look`; None: when `fileno` is readable
    away: str | None  # why nothing can be heard of the database at the moment, where that is known

    def fileno(self) -> int | None: ...

    def look(self) -> tuple[str, ...] | None:
        """The queues that were hinted at; () for none, None for any of them. Never waits."""

    def caution(self) -> str | None:
        """What keeps new work from being noticed at once; None if nothing does."""

    def mend(self) -> None:
        """Connects anew where the link is broken; that may take seconds, and is for another thread. Raises SchemaError where it
        leads nowhere any more."""

    def close(self) -> None: ...


def watch(config: Config) -> Watch:
    if config.backend == "postgres":
        from supervisors.loop.listening import Listener

        return Listener(config)
    return Followed(config) if config.backend == "s3" else DataVersion(config)


class DataVersion:
    """SQLite and what is kept like it: a number that costs no transaction says whether anybody has committed."""

    away: str | None = None

    def __init__(self, config: Config) -> None:
        from pgqrs.store.sqlite import SqliteDatabase

        database = open_database(config)
        assert isinstance(database, SqliteDatabase)
        self._database = database
        self._file = _file(config)
        self._inode = self._file.stat().st_ino if self._file else None
        self._seen = database.data_version()
        self.interval_s: float | None = SQLITE_LOOK_S

    def fileno(self) -> int | None:
        return None

    def caution(self) -> str | None:
        return None

    def look(self) -> tuple[str, ...] | None:
        try:
            version = self._database.data_version()
        except errors.PgqrsConnectionError:  # who asks for work hears of it
            return ()
        changed, self._seen = version != self._seen, version
        return None if changed else ()

    def mend(self) -> None:
        """Raises SchemaError where there is another file by now, or none: what is open here, nobody else sees any more."""
        if self._file is None:
            return
        with contextlib.suppress(FileNotFoundError):
            if self._file.stat().st_ino == self._inode:
                return
        raise errors.SchemaError(
            f"the database file {self._file} was removed or replaced while this supervisor had it open: nobody else sees what is "
            "done in the old one; start the supervisor again"
        )

    def close(self) -> None:
        self._database.close()


def _file(config: Config) -> Path | None:
    """That nobody may replace; the copy of what is in S3 is ours to."""
    if config.backend == "s3":
        return None
    return Path(sqlite_path(config.dsn) if config.backend == "sqlite" else turso_file(config.dsn)[0])


class Followed(DataVersion):
    """S3: a thread asks it for news, which then show as those of the local copy do. It asks at once when a process of this machine
    says that there are some."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="pgqrs-follow", daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        from pgqrs.store.s3.database import S3Database

        database = self._database
        assert isinstance(database, S3Database)
        seen, waited_s = database.last_hint(), 0.0
        while not self._stop.wait(S3_HINT_LOOK_S):
            hint, waited_s = database.last_hint(), waited_s + S3_HINT_LOOK_S
            if hint != seen or waited_s >= S3_LOOK_S:
                seen, waited_s = hint, 0.0
                try:
                    database.follow()
                    self.away = None
                except errors.PgqrsError as e:
                    self.away = str(e)

    def close(self) -> None:
        from pgqrs.store.s3.database import S3Database

        self._stop.set()
        assert isinstance(self._database, S3Database)
        self._database.sever()
        self._thread.join(2)
        super().close()
