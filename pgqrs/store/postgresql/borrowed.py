"""Lends a caller's psycopg.AsyncConnection to blocking code for the duration of a call.

The blocking code gets a psycopg.Connection on the same PGconn, so that no statement has to be
written twice. While the code executes in a thread, it holds the async connection's lock, and no
task of the caller uses the connection.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import psycopg
from psycopg.pq import TransactionStatus

from pgqrs.store.calls import interruptible

R = TypeVar("R")


class Borrowed(psycopg.Connection[Any]):
    """A blocking connection that uses the link of an async one. It opens and closes nothing. Use it
    only inside `lent`.
    """

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        pgconn = connection.pgconn
        handlers = pgconn.notice_handler, pgconn.notify_handler
        super().__init__(pgconn)
        # Notices and notifications still reach the caller's handlers.
        pgconn.notice_handler, pgconn.notify_handler = handlers
        # psycopg names prepared statements by a counter. The same names belong to the caller's statements.
        self.prepare_threshold = None
        self._lender = connection

    def __del__(self) -> None:  # type: ignore[override]
        """Suppresses the warning about a connection that was not closed: only the caller closes the
        connection.
        """

    @asynccontextmanager
    async def lent(self) -> AsyncIterator[None]:
        """While the block lasts, no other task uses the connection, and the connection is in no
        pipeline. Statements that the caller had put in a pipeline are executed first.
        """
        lender = self._lender
        if lender.pgconn.pipeline_status:
            async with lender.pipeline():
                pass  # the end of a nested pipeline waits for the answers
        async with lender.lock:
            in_pipeline = bool(lender.pgconn.pipeline_status)
            if in_pipeline:
                lender.pgconn.exit_pipeline_mode()
            try:
                yield
            finally:
                if in_pipeline:
                    lender.pgconn.enter_pipeline_mode()

    def carried_out(self, call: Callable[[], R]) -> R:
        """Executes a call in a thread, inside `lent`. The call begins transactions with the
        caller's settings. If the waiting task is cancelled, the call is interrupted.
        """
        lender = self._lender
        if lender.pgconn.transaction_status == TransactionStatus.IDLE:
            self.autocommit = lender.autocommit
            self.isolation_level = lender.isolation_level
            self.read_only = lender.read_only
            self.deferrable = lender.deferrable
        with interruptible(self.cancel_safe):
            return call()
