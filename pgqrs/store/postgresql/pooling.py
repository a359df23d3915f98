"""Connections to PostgreSQL. Stores of a process with the same settings share them. So a hundred
stores, including abandoned ones, use no more connections to a server than one store.
"""

import logging
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import psycopg
from psycopg_pool import ConnectionPool

from pgqrs import errors
from pgqrs.store.postgresql.prepared import Prepared

Row = tuple[Any, ...]
Key = tuple[object, ...]

# The pool's log messages about lost connections. Errors are raised where they matter.
logging.getLogger("psycopg.pool").addHandler(logging.NullHandler())

MAX_IDLE_S = 30.0
# At most one NOTIFY per queue in this time. A supervisor that was woken polls again itself.
HINT_INTERVAL_S = 0.005


class PooledConnection(psycopg.Connection[Row]):
    """A connection of the pool. `prepared` is set once, when the connection is created."""

    prepared: Prepared


class Connections:
    """A pool for transactions, and one connection outside it for hints, opened on first use."""

    def __init__(
        self,
        key: Key | None,
        pool: "ConnectionPool[PooledConnection]",
        connect: Callable[[], psycopg.Connection[Row]],
        notify: Callable[[psycopg.Connection[Row], list[str]], bool],
    ) -> None:
        self.pool = pool
        # the connections of the pool
        self.opened: weakref.WeakSet[psycopg.Connection[Row]] = weakref.WeakSet()
        self._key = key
        self._users = 0
        self._connect = connect
        self._notify = notify
        self._hinted: dict[str, float] = {}
        self._hinting: psycopg.Connection[Row] | None = None
        self._lock = threading.Lock()

    def hint(self, queues: Iterable[str]) -> None:
        """Notifies listeners outside of any transaction, because a commit with a NOTIFY locks the
        whole database. An error here only delays an idle listener, which also polls.
        """
        with self._lock, suppress(psycopg.Error, errors.PgqrsError):
            due = [q for q in queues if time.monotonic() - self._hinted.get(q, -1.0) >= HINT_INTERVAL_S]
            if not due:
                return
            if self._hinting is None or self._hinting.closed:
                self._hinting = self._connect()
            if self._notify(self._hinting, due):
                self._hinted.update(dict.fromkeys(due, time.monotonic()))

    def sever(self) -> None:
        """Shuts down the pool's connections: calls in progress fail, and no connection is used
        again. May be called from any thread.
        """
        for connection in list(self.opened):
            with (
                suppress(psycopg.Error, OSError),
                socket.socket(fileno=os.dup(connection.fileno())) as link,
            ):
                link.shutdown(socket.SHUT_RDWR)

    def _close(self) -> None:
        self.pool.close()
        self._close_hinting()

    def _close_hinting(self) -> None:
        if self._hinting is not None:
            self._hinting.close()

    def __del__(self) -> None:
        # The pool closes its own connections.
        with suppress(Exception):
            self._close_hinting()


# Shared by key. The lock is reentrant, because a finalizer may run inside any of the functions
# below, in the same thread.
_lock = threading.RLock()
_known: dict[Key, Connections] = {}


def lend(key: Key | None, make: Callable[[Key | None], Connections]) -> Connections:
    """Returns the connections for a key, and creates them if needed. For None, always returns new
    connections. The caller must call `give_back` once.
    """
    if key is not None:
        key = (os.getpid(), *key)
    with _lock:
        connections = _known.get(key) if key is not None else None
        if connections is None:
            connections = make(key)
            if key is not None:
                _known[key] = connections
        connections._users += 1
    # Without the lock: this starts threads and waits for them, and a finalizer may run in a new thread.
    connections.pool.open()
    return connections


def give_back(connections: Connections) -> None:
    """Releases the connections. The last user closes them."""
    if _left(connections):
        connections._close()


def abandon(connections: Connections) -> None:
    """Releases the connections. A finalizer calls this and must not wait, so the connections are
    not closed here: unreferenced connections close themselves.
    """
    _left(connections)


def _left(connections: Connections) -> bool:
    with _lock:
        connections._users -= 1
        if connections._users:
            return False
        key = connections._key
        if key is not None and _known.get(key) is connections:
            del _known[key]
        return True
