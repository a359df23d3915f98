"""On PostgreSQL a migration that cannot have a lock gives up soon: everybody else would wait
behind it meanwhile."""

import threading

import psycopg
import pytest

from pgqrs import errors
from pgqrs.store import migrations
from tests.store.given import columns, execute

POSTGRES_ONLY = True


class Migration:
    name = "0007_other.sql"

    def __init__(self, text):
        self.text = text

    def read_text(self):
        return self.text


@pytest.fixture
def behind(bare, dsn, monkeypatch):
    """A database that lacks its last migration; and an install that waits for less long than it
    would."""
    bare.install()
    execute(dsn, "drop table pgqrs_database")
    execute(dsn, "delete from pgqrs_migrations where version = 7")
    monkeypatch.setattr(migrations, "LOCK_TIMEOUT", "50ms")
    yield bare
    execute(dsn, "drop schema public cascade")
    execute(dsn, "create schema public")


def test_an_install_that_waits_for_a_table_gives_up_and_changes_nothing(behind, dsn, monkeypatch):
    alters = Migration("alter table pgqrs_messages add column later integer;")
    known = [m for m in migrations._migrations("postgres") if m[0] != 7]
    monkeypatch.setattr(migrations, "_migrations", lambda dialect: [*known, (7, alters)])
    before = columns(dsn, "pgqrs_migrations", "version")
    with psycopg.connect(dsn) as reader:
        reader.execute("select 1 from pgqrs_messages")
        with pytest.raises(
            errors.PgqrsConnectionError,
            match=r"waited for 50ms for a lock .* changed nothing.*pg_stat_activity",
        ):
            behind.install()
    assert columns(dsn, "pgqrs_migrations", "version") == before


def test_another_install_is_waited_for_as_long_as_it_takes(behind, dsn):
    with psycopg.connect(dsn) as other:
        other.execute("select pg_advisory_xact_lock(7274817312)")
        done: list[int] = []
        waiting = threading.Thread(target=lambda: done.append(behind.install()))
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
        other.rollback()
    waiting.join(10)
    assert done == [1]


def test_a_migration_may_take_longer_than_a_statement_of_the_role_may(behind, open_another, dsn, monkeypatch):
    known = [m for m in migrations._migrations("postgres") if m[0] != 7]
    slow = Migration("select pg_sleep(0.5); " + dict(migrations._migrations("postgres"))[7].read_text())
    monkeypatch.setattr(migrations, "_migrations", lambda dialect: [*known, (7, slow)])
    database = dsn.rpartition("/")[2]
    execute(dsn, f"alter database {database} set statement_timeout to '200ms'")
    try:
        behind.close()
        assert open_another().install() == 1
    finally:
        with psycopg.connect(dsn, autocommit=True, options="-c statement_timeout=0") as pg:
            pg.execute(f"alter database {database} reset statement_timeout".encode())
