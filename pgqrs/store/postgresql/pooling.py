"""Connections to PostgreSQL. The stores of a process that connect alike share them: a hundred stores, abandoned ones among
them, then take no more of a server than one does."""

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

# What it has to say of connections it gives up comes as errors where it matters.
logging.getLogger("psycopg.pool").addHandler(logging.NullHandler())

MAX_IDLE_S = 30.0
HINT_INTERVAL_S = 0.005  # at most one NOTIFY a queue in this time: whoever was woken polls again by itself


class PooledConnection(psycopg.Connection[Row]):
    """`prepared` is set once when the connection is made."""

    prepared: Prepared


class Connections:
    """A pool for transactions, and one connection outside it for hints, opened when first needed."""

    def __init__(
        self,
        key: Key | None,
        pool: "ConnectionPool[PooledConnection]",
        connect: Callable[[], psycopg.Connection[Row]],
        notify: Callable[[psycopg.Connection[Row], list[str]], bool],
    ) -> None:
        self.pool = pool
        self.opened: weakref.WeakSet[psycopg.Connection[Row]] = weakref.WeakSet()  # those of the pool
        self._key = key
        self._users = 0
        self._connect = connect
        self._notify = notify
        self._hinted: dict[str, float] = {}
        self._hinting: psycopg.Connection[Row] | None = None
        self._lock = threading.Lock()

    def hint(self, queues: Iterable[str]) -> None:
        """Outside any transaction: a commit that notifies takes a lock on the whole database. An idle listener polls all the
        same, so what goes wrong here only costs it that time."""
        with self._lock, suppress(psycopg.Error, errors.PgqrsError):
            due = [q for q in queues if time.monotonic() - self._hinted.get(q, -1.0) >= HINT_INTERVAL_S]
            if not due:
                return
            if self._hinting is None or self._hinting.closed:
                self._hinting = self._connect()
            if self._notify(self._hinting, due):
                self._hinted.update(dict.fromkeys(due, time.monotonic()))

    def sever(self) -> None:
        """Shuts the pool's connections, so that calls under way fail and none is used again. From any thread."""
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
        # The pool's own connections close with it.
        with suppress(Exception):
            self._close_hinting()


# Shared by key. A finalizer may run in the middle of any of the functions below, in the same thread: hence the kind of lock.
_lock = threading.RLock()
_known: dict[Key, Connections] = {}


def lend(key: Key | None, make: Callable[[Key | None], Connections]) -> Connections:
    """Those of whoever asked with the same key before, or new ones; always new ones for None. To be given back once."""
    if key is not None:
        key = (os.getpid(), *key)
    with _lock:
        connections = _known.get(key) if key is not None else None
        if connections is None:
            connections = make(key)
            if key is not None:
                _known[key] = connections
        connections._users += 1
    # Not under the lock: this starts threads and waits for them, and a new thread may be where a finalizer comes to run.
    connections.pool.open()
    return connections


def give_back(connections: Connections) -> None:
    """The last one closes them."""
    if _left(connections):
        connections._close()


def abandon(connections: Connections) -> None:
    """By a finalizer, in whatever thread: nothing may be waited for. What nobody refers to any more closes by itself."""
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
