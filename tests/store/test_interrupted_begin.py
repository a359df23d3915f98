"""An exception that a signal raises just when a transaction has begun leaves the connection usable, and the file free."""

import pytest

import pgqrs


@pytest.fixture
def store(sqlite_dsn):
    with pgqrs.connect(sqlite_dsn) as store:
        store.install()
        yield store


def test_a_signal_after_the_begin_leaves_no_transaction_open(store, sqlite_dsn, monkeypatch):
    database = store.messages.database
    begin = type(database)._begin

    def interrupted(self, connection, how):
        begin(self, connection, how)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(database), "_begin", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.enqueue("q", 1)
    assert store.enqueue("q", 2)
    with pgqrs.connect(sqlite_dsn) as other:
        assert other.enqueue("q", 3)
