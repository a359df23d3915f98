"""Stores whose SQLite file is kept in S3."""

from typing import NoReturn

from pgqrs import aio, client


def as_s3(store: aio.Store | client.Store) -> NoReturn:
    """The store's hold on its S3 object. Raises TypeError for a store that has none, which is every store so far: this
    version opens PostgreSQL and SQLite."""
    if not isinstance(store, aio.Store | client.Store):
        raise TypeError(f"expected 's3' store, not {type(store).__name__}")
    raise TypeError(
        f"expected 's3' store, not {store.config.backend!r}: one that was connected to s3://bucket/key"
    )
