"""How a supervisor learns of new messages on PostgreSQL."""

import contextlib

import psycopg

from pgqrs import errors
from pgqrs.config import Config
from pgqrs.store.postgresql.database import CHANNEL, connect, is_pooled

# The polling interval while no connection listens.
POLL_S = 2.0
# The polling interval behind a pooler, where LISTEN does not work.
POLL_POOLED_S = 0.5


class Listener:
    """Listens for hints with LISTEN, on a connection of its own. While this connection is broken,
    the listener polls.

    Behind a pooler the listener only polls, because LISTEN belongs to a session.
    `Config.listen_dsn` may name a direct connection.
    """

    # Always None: turns report that the database is away.
    away: str | None = None

    def __init__(self, config: Config) -> None:
        self._config = config
        if config.listen_dsn is not None:
            self._config = Config.from_dict(config.to_dict() | {"dsn": config.listen_dsn})
        self._connection: psycopg.Connection[tuple[object, ...]] | None = None
        self._pooled = False
        self.interval_s: float | None = POLL_S
        self.mend()

    def mend(self) -> None:
        if self._connection is None and not self._pooled:
            with contextlib.suppress(errors.PgqrsConnectionError, errors.DatabaseError, psycopg.Error):
                self._listen()

    def _listen(self) -> None:
        connection = connect(self._config, autocommit=True)
        if is_pooled(connection):
            connection.close()
            self._pooled, self.interval_s = True, POLL_POOLED_S
            return
        connection.execute(f"listen {CHANNEL}".encode())
        self._connection, self.interval_s = connection, None

    def caution(self) -> str | None:
        if not self._pooled:
            return None
        return (
            "PostgreSQL is reached through a connection pooler, where nobody "
            f"can listen: new work is looked for every {POLL_POOLED_S:g} s; "
            "to hear of it at once, name a direct way in PGQRS_LISTEN_DSN"
        )

    def fileno(self) -> int | None:
        return self._connection.fileno() if self._connection is not None else None

    def look(self) -> tuple[str, ...] | None:
        if self._connection is None:
            return None
        try:
            return tuple({n.payload for n in self._connection.notifies(timeout=0)})
        except psycopg.Error:
            self._connection.close()
            self._connection, self.interval_s = None, POLL_S
            return None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
