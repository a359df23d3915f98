"""How a supervisor notices that there may be new messages. A notice is only a hint: without hints
the supervisor also polls, at growing intervals.
"""

import contextlib
import threading
from pathlib import Path
from typing import Protocol

from pgqrs import errors
from pgqrs.config import Config, sqlite_path, turso_file
from pgqrs.store import open_database

SQLITE_LOOK_S = 0.004
# The interval of looks at the time of a file.
S3_HINT_LOOK_S = 0.01
# At 0.4 cents for 10,000 such requests, 3.5 cents a day.
S3_LOOK_S = 1.0


class Watch(Protocol):
    # How often to call `look`. None: when `fileno` is readable.
    interval_s: float | None
    # Why the database is away, if the watch knows.
    away: str | None

    def fileno(self) -> int | None: ...

    def look(self) -> tuple[str, ...] | None:
        """Returns the queues that were hinted at. (): no hint. None: a hint that may mean any
        queue. Never waits.
        """

    def caution(self) -> str | None:
        """Returns why new messages may not be noticed at once, or None."""

    def mend(self) -> None:
        """Connects again if the connection is broken. This may take seconds, so another thread
        calls it. Raises SchemaError if the database is no longer the same.
        """

    def close(self) -> None: ...


def watch(config: Config) -> Watch:
    if config.backend == "postgres":
        from supervisors.loop.listening import Listener

        return Listener(config)
    return Followed(config) if config.backend == "s3" else DataVersion(config)


class DataVersion:
    """The watch for SQLite and similar databases. It reads a number that changes when another
    connection has committed. The read needs no transaction.
    """

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
        except errors.PgqrsConnectionError:
            # Turns report that the database is away.
            return ()
        changed, self._seen = version != self._seen, version
        return None if changed else ()

    def mend(self) -> None:
        """Raises SchemaError if the file was removed or replaced. The file that is open here would
        then be invisible to everybody else.
        """
        if self._file is None:
            return
        with contextlib.suppress(FileNotFoundError):
            if self._file.stat().st_ino == self._inode:
                return
        raise errors.SchemaError(
            f"the database file {self._file} was removed or replaced while this supervisor had it open: "
            "nobody else sees what is done in the old one; start the supervisor again"
        )

    def close(self) -> None:
        self._database.close()


def _file(config: Config) -> Path | None:
    """Returns the file that nobody may replace. On S3 there is none, because pgqrs itself replaces
    the local copy.
    """
    if config.backend == "s3":
        return None
    return Path(sqlite_path(config.dsn) if config.backend == "sqlite" else turso_file(config.dsn)[0])


class Followed(DataVersion):
    """The watch for S3. A thread asks the bucket for a newer version, which then appears like a
    commit to the local copy. When a process of this machine leaves a hint, the thread asks at once.
    """

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
