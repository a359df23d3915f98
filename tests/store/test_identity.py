"""What a database says of itself: who it is, and which code may use it."""

import re

import pytest

from pgqrs import errors
from pgqrs.store import migrations
from pgqrs.store.migrations import VERSION
from tests.store.given import columns, execute


@pytest.fixture
def store(bare, dsn):
    """Made anew, and gone afterwards: other tests' database must not be as these leave it."""
    bare.install()
    yield bare
    if dsn.startswith("postgres"):
        execute(dsn, "drop schema public cascade")
        execute(dsn, "create schema public")


def newer(dsn, oldest, version=VERSION + 2, noted=None):
    """As an install of newer code leaves it, which `oldest` code may use."""
    execute(dsn, "insert into pgqrs_migrations (version, name) values (?, 'newer')", version)
    execute(dsn, "update pgqrs_database set version = ?, oldest_version = ?", noted or version, oldest)


def test_a_database_has_an_identity_that_stays(store, open_another, dsn):
    identity = store.identity()
    assert re.fullmatch(r"[0-9a-f]{32}", identity)
    store.install()
    assert open_another().identity() == identity
    assert columns(dsn, "pgqrs_database", "identity, version") == [(identity, VERSION)]


def test_a_database_that_is_made_anew_has_another(store, open_another, dsn):
    first = store.identity()
    execute(dsn, "delete from pgqrs_database")  # as nobody should
    assert store.identity() == first, "it is looked up once"
    second = open_another().identity()
    assert re.fullmatch(r"[0-9a-f]{32}", second)
    assert second != first
    assert columns(dsn, "pgqrs_database", "identity") == [(second,)]


def test_a_copy_is_the_same_database(store, dsn, tmp_path):
    if not dsn.startswith("sqlite"):
        return
    execute(dsn, "vacuum into ?", str(tmp_path / "copy.db"))
    assert columns(f"sqlite://{tmp_path / 'copy.db'}", "pgqrs_database", "identity") == [(store.identity(),)]


def test_an_older_database_gets_one_with_the_migration(store, dsn):
    execute(dsn, "drop table pgqrs_database")
    execute(dsn, "delete from pgqrs_migrations where version = 7")
    assert store.install() == 1
    assert len(store.identity()) == 32


def test_code_that_the_newer_database_names_may_use_it(store, open_another, dsn):
    newer(dsn, oldest=VERSION)
    assert store.verify() == VERSION + 2
    assert store.install() == 0
    old = open_another()
    old.enqueue(old.ensure_queue("tasks"), [b"1"])
    assert columns(dsn, "pgqrs_database", "version, oldest_version") == [(VERSION + 2, VERSION)]


@pytest.mark.parametrize("oldest, noted", [(VERSION + 1, None), (VERSION + 2, None), (VERSION, VERSION + 1)])
def test_other_code_may_not(oldest, noted, store, dsn):
    """Nor where the last migration came by other hands than an install's."""
    newer(dsn, oldest, noted=noted)
    for use in (store.verify, store.install):
        with pytest.raises(errors.SchemaError, match=r"newer than this pgqrs knows .* upgrade the package"):
            use()


def test_an_install_notes_what_its_migrations_say(store, dsn):
    """Of 7, the first that old code can read this of, only its own and later code may use it."""
    [(version, oldest)] = columns(dsn, "pgqrs_database", "version, oldest_version")
    assert version == VERSION
    assert 7 <= oldest <= VERSION


class File:
    def __init__(self, text):
        self.text = text

    def read_text(self):
        return self.text


@pytest.mark.parametrize(
    "text, oldest",
    [
        ("-- A table.\n-- oldest code: version 7\n\ncreate table …", 7),
        ("-- oldest code: version 7 or so\n", 9),
        ("", 9),
    ],
)
def test_a_migration_says_in_a_line_of_its_own_which_code_may_go_on(text, oldest):
    assert migrations._oldest_code(9, File(text)) == oldest
