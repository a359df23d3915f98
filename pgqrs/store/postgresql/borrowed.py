"""A caller's psycopg.AsyncConnection, lent to blocking code for the length of a call.

The blocking code gets a psycopg.Connection on the same PGconn, so that whatever a statement needs is written once. While it
runs, in a thread, it holds the async connection's lock: no task of the caller's uses the connection meanwhile.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import psycopg
from psycopg.pq import TransactionStatus

from pgqrs.store.calls import interruptible

R = TypeVar("R")


class Borrowed(psycopg.Connection[Any]):
    """The blocking face of an async connection. It opens and closes nothing, and is for use within `lent` alone."""

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        pgconn = connection.pgconn
        handlers = pgconn.notice_handler, pgconn.notify_handler
        super().__init__(pgconn)
        # Notices and notifications go on to the caller's handlers.
        pgconn.notice_handler, pgconn.notify_handler = handlers
        # The driver names what it prepares by a counter: the lender's statements have the same names.
        self.prepare_threshold = None
        self._lender = connection

    def __del__(self) -> None:  # type: ignore[override]
        """No warning that it was left open: that is for its lender to say."""

    @asynccontextmanager
    async def lent(self) -> AsyncIterator[None]:
        """For the length of a block nobody else uses the connection, and it is in no pipeline: what stood in the caller's was
        carried out before."""
        lender = self._lender
        if lender.pgconn.pipeline_status:
            async with lender.pipeline():
                pass  # the end of a pipeline within another waits for the answers
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
        """In a thread, within `lent`: the call, which begins a transaction as the lender would, and which ends when the task
        that waits for it is cancelled."""
        lender = self._lender
        if lender.pgconn.transaction_status == TransactionStatus.IDLE:
            self.autocommit = lender.autocommit
            self.isolation_level = lender.isolation_level
            self.read_only = lender.read_only
            self.deferrable = lender.deferrable
        with interruptible(self.cancel_safe):
            return call()
