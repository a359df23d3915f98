"""Stores whose SQLite file is kept in S3: what there is to do about the copy on this machine and the object."""

from typing import overload

from pgqrs.clients import aio, blocking
from pgqrs.model.states import SyncState
from pgqrs.store.database import Kept


class BlockingS3StoreHandle:
    """A store's hold on its S3 object."""

    def __init__(self, store: blocking.Store, database: Kept) -> None:
        self._store = store
        self._database = database

    def snapshot(self) -> None:
        """Makes the local copy what the object is now. Commits nothing to S3.

        Raises PgqrsError ("unsynced writes") where that would undo writes of Local mode, or where there is no object;
        PgqrsConnectionError where S3 cannot be reached.
        """
        self._database.snapshot()
        self._store.forget()

    def sync(self) -> None:
        """Makes the object what the local copy is, in one PUT; none where they are the same. Makes an object that is not there,
        or has gone meanwhile. In Durable mode there is hardly ever anything to do.

        Raises ConflictError, a PgqrsError ("conflict"), where the object is not the one that was last seen here: it stays as it
        is, and so does the local copy. PgqrsConnectionError where it is unknown whether the object was replaced.
        """
        self._database.sync()

    def state(self) -> SyncState:
        """How the local copy and the object stand to each other, by one look at S3 (HEAD). LocalMissing: there is an object, and
        nothing here yet. Raises PgqrsConnectionError."""
        return self._database.state()


class S3StoreHandle(aio.Twin[BlockingS3StoreHandle]):
    """The same, awaited."""

    snapshot = aio.awaited(BlockingS3StoreHandle.snapshot)
    sync = aio.awaited(BlockingS3StoreHandle.sync)
    state = aio.awaited(BlockingS3StoreHandle.state)


@overload
def as_s3(store: aio.Store) -> S3StoreHandle: ...
@overload
def as_s3(store: blocking.Store) -> BlockingS3StoreHandle: ...
def as_s3(store: aio.Store | blocking.Store) -> S3StoreHandle | BlockingS3StoreHandle:
    """The store's hold on its S3 object. Raises TypeError for a store that was not connected to s3://bucket/key."""
    if not isinstance(store, aio.Store | blocking.Store):
        raise TypeError(f"expected 's3' store, not {type(store).__name__}")
    if store.config.backend != "s3":
        raise TypeError(
            f"expected 's3' store, not {store.config.backend!r}: one that was connected to s3://bucket/key"
        )
    core = store.core if isinstance(store, aio.Store) else store
    held = BlockingS3StoreHandle(core, core.kept())
    return S3StoreHandle(held, store.ways) if isinstance(store, aio.Store) else held
