"""Stores whose SQLite file is kept in S3: these handles synchronize the local copy with the S3
object.
"""

from typing import overload

from pgqrs.clients import aio, blocking
from pgqrs.model.states import SyncState
from pgqrs.store.database import Kept


class BlockingS3StoreHandle:
    """Gives access to the S3 object of a store."""

    def __init__(self, store: blocking.Store, database: Kept) -> None:
        self._store = store
        self._database = database

    def snapshot(self) -> None:
        """Replaces the local copy with the object's current content. Writes nothing to S3.

        Raises PgqrsError ("unsynced writes") if the local copy has writes of Local mode that would
        be lost, or if there is no object. Raises PgqrsConnectionError if S3 cannot be reached.
        """
        self._database.snapshot()
        self._store.forget()

    def sync(self) -> None:
        """Writes the local copy to the object with one PUT. If both are the same, sends no PUT.

        If there is no object, `sync` creates it, even if the object was removed in the meantime. In
        Durable mode there is hardly ever anything to write.

        Raises ConflictError, a PgqrsError ("conflict"), if the object is not the version that this
        store last saw. The object and the local copy then stay unchanged. Raises
        PgqrsConnectionError if it is unknown whether the object was replaced.
        """
        self._database.sync()

    def state(self) -> SyncState:
        """Compares the local copy with the object, using one HEAD request. LocalMissing means that
        there is an object but no local copy. Raises PgqrsConnectionError.
        """
        return self._database.state()


class S3StoreHandle(aio.Twin[BlockingS3StoreHandle]):
    """The async twin of BlockingS3StoreHandle."""

    snapshot = aio.awaited(BlockingS3StoreHandle.snapshot)
    sync = aio.awaited(BlockingS3StoreHandle.sync)
    state = aio.awaited(BlockingS3StoreHandle.state)


@overload
def as_s3(store: aio.Store) -> S3StoreHandle: ...
@overload
def as_s3(store: blocking.Store) -> BlockingS3StoreHandle: ...
def as_s3(store: aio.Store | blocking.Store) -> S3StoreHandle | BlockingS3StoreHandle:
    """Returns the handle for the store's S3 object. Raises TypeError if the store is not connected
    to s3://bucket/key.
    """
    if not isinstance(store, aio.Store | blocking.Store):
        raise TypeError(f"expected 's3' store, not {type(store).__name__}")
    if store.config.backend != "s3":
        raise TypeError(
            f"expected 's3' store, not {store.config.backend!r}: one that was connected to s3://bucket/key"
        )
    core = store.core if isinstance(store, aio.Store) else store
    held = BlockingS3StoreHandle(core, core.kept())
    return S3StoreHandle(held, store.ways) if isinstance(store, aio.Store) else held
