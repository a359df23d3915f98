"""Where a DSN leads, and that its password is never shown."""

import inspect
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgqrs.config import Config, DurabilityMode, backend_of, conninfo, redact, scrub, sqlite_path
from pgqrs.errors import ConfigError
from pgqrs.settings import SETTINGS


def test_the_defaults_are_those_of_0_15():
    config = Config("sqlite://x.db")
    assert {name.removeprefix("_"): value for name, value in vars(config).items()} == {
        "dsn": "sqlite://x.db",
        "schema": "public",
        "max_connections": 16,
        "connection_timeout_seconds": 30,
        "default_lock_time_seconds": None,  # read as 5
        "default_max_batch_size": 100,
        "max_read_ct": 5,
        "heartbeat_interval_seconds": 5,
        "poll_interval_ms": 100,
        "max_payload_size_bytes": 1024 * 1024,
        "max_string_length": 1024,
        "max_object_depth": 5,
        "forbidden_keys": ["__proto__", "constructor"],
        "required_keys": [],
        "max_enqueue_per_second": 1000,
        "max_enqueue_burst": 50,
        "reclaim_after_seconds": None,
        "sqlite_use_wal": True,
        "s3_mode": DurabilityMode.Durable,
        "s3_cache_dir": None,
    }
    assert config.default_lock_time_seconds == 5
    assert vars(Config.from_dsn("sqlite://x.db")) == vars(config)


def test_settings_are_given_or_assigned():
    config = Config("postgresql://h/d", schema="app", max_connections=3)
    assert (config.schema, config.max_connections) == ("app", 3)
    config.schema = "other_$1"
    config.max_read_ct = 9
    config.s3_mode = DurabilityMode.Local
    config.s3_cache_dir = "/tmp/cache"
    assert (config.schema, config.max_read_ct, config.s3_cache_dir) == ("other_$1", 9, "/tmp/cache")


def test_lists_of_one_config_are_not_those_of_another():
    Config("sqlite://a").required_keys.append("id")
    assert Config("sqlite://b").required_keys == []


@pytest.mark.parametrize("name", ["a", "_a", "$a", "A1_$", "x" * 63])
def test_a_schema_is_letters_digits_underscores_and_dollars(name):
    assert Config("pg://h/d", schema=name).schema == name


@pytest.mark.parametrize("name", ["", "1a", "a-b", "a b", 'a"b', "a;drop", "é", "x" * 64, "a\n", None, 5])
def test_any_other_schema_is_refused_also_on_assignment(name):
    config = Config("pg://h/d")
    with pytest.raises(ConfigError, match="cannot name a schema: 1 to 63 letters"):
        config.schema = name
    assert config.schema == "public"


@pytest.mark.parametrize("path", ["", " ", "\t\n"])
def test_a_blank_cache_dir_is_refused_on_assignment(path):
    with pytest.raises(ConfigError, match=r"^cache dir cannot be empty$"):
        Config("s3://b/k").s3_cache_dir = path


@pytest.mark.parametrize(
    "written,backend",
    [
        ("postgresql://u:p@h:5432/d", "postgres"),
        ("postgres://h/d", "postgres"),
        ("PostgreSQL://h/d", "postgres"),
        ("pg://h/d", "postgres"),
        ("sqlite:///abs/x.db", "sqlite"),
        ("sqlite://rel.db", "sqlite"),
        ("sqlite::memory:", "sqlite"),
        ("turso://x.db", "turso"),
        ("s3://bucket/key", "s3"),
    ],
)
def test_the_scheme_names_the_backend(written, backend):
    assert Config(written).backend == backend


@pytest.mark.parametrize(
    "written", ["", "x.db", "/tmp/x.db", "mysql://h/d", "sqlite:x.db", "http://h", "host=h dbname=d", "://"]
)
def test_any_other_scheme_is_refused_with_those_accepted(written):
    with pytest.raises(ConfigError, match=r"postgresql://, postgres://, sqlite://"):
        assert Config(written).backend
    with pytest.raises(ConfigError):
        sqlite_path(written)


@pytest.mark.parametrize(
    "written,path",
    [
        ("sqlite:///var/lib/x.db", "/var/lib/x.db"),
        ("sqlite://x.db", "x.db"),
        ("sqlite://sub/x y%20z.db", "sub/x y%20z.db"),
        ("sqlite::memory:", ":memory:"),
        ("sqlite://:memory:", ":memory:"),
        ("sqlite:///tmp/x.db?mode=rwc", "/tmp/x.db"),
        ("sqlite://x?mode=memory", ":memory:"),
    ],
)
def test_a_sqlite_dsn_is_a_path_after_two_slashes(written, path):
    assert sqlite_path(written) == path


@pytest.mark.parametrize(
    "written", ["sqlite://", "sqlite://?mode=rwc", "postgres://h/d", "sqlite://x.db?mode=ro", "sqlite://x?y"]
)
def test_what_names_no_sqlite_file_is_refused(written):
    with pytest.raises(ConfigError):
        sqlite_path(written)


def test_libpq_gets_a_scheme_that_it_knows():
    assert conninfo("pg://u@h/d?x=y") == "postgresql://u@h/d?x=y"
    assert conninfo("sqlite://x") == "sqlite://x"


def test_without_a_dsn_it_is_the_environment_s_else_a_file_here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PGQRS_DSN", "pg://h/d")
    assert Config.load().dsn == "pg://h/d"
    monkeypatch.setenv("PGQRS_DSN", "")
    assert Config.load().dsn == "sqlite://pgqrs.db"


# Passwords


@pytest.mark.parametrize(
    "written,shown",
    [
        ("postgresql://me:geheim@h:5432/d", "postgresql://me:***@h:5432/d"),
        ("postgresql://me:geh@eim@h/d", "postgresql://me:***@h/d"),
        ("postgresql://me:geh/eim@h/d", "postgresql://me:***@h/d"),
        ("postgresql://me:geh?eim@h/d", "postgresql://me:***@h/d"),
        ("postgresql://me:geh?e=im@h/d", "postgresql://me:***@h/d"),
        ("postgresql://me:geh:eim@h/d", "postgresql://me:***@h/d"),
        ("postgresql://:geheim@h/d", "postgresql://:***@h/d"),
        ("postgresql://h/d?user=me&password=geheim", "postgresql://h/d?user=me&password=***"),
        ("postgresql://h/d?p%61ssword=geheim&x=1", "postgresql://h/d?p%61ssword=***&x=1"),
        (
            "postgresql://me:eins@h/d?password=zwei&sslmode=require",
            "postgresql://me:***@h/d?password=***&sslmode=require",
        ),
        ("turso://db?authToken=geheim", "turso://db?authToken=***"),
        ("host=h password=geheim user=me", "host=h password=*** user=me"),
        ("host=h password = 'geh\\' eim' user=me", "host=h password = *** user=me"),
        ("password=geh\\ eim user=me", "password=*** user=me"),
        ("password='geheim", "password=***"),
        ("me:geheim@h/d", "me:***@h/d"),
    ],
)
def test_a_password_is_replaced_wherever_a_dsn_can_hold_one(written, shown):
    assert redact(written) == shown


@pytest.mark.parametrize(
    "written",
    [
        "postgresql://h:5432/d",
        "postgresql://me@h/d",
        "postgresql://me:@h/d",
        "postgresql://h:5432/d?application_name=a@b",
        "postgresql://a:1,b:2/d?options=x@y",
        "postgresql://me@[::1]:5432/d",
        "sqlite:///tmp/x.db",
        "sqlite::memory:",
        "s3://bucket/key",
        "host=h user=me",
        "",
    ],
)
def test_what_holds_no_password_is_shown_as_it_is(written):
    assert redact(written) == written


def test_neither_a_repr_nor_an_error_shows_the_password():
    assert "geheim" not in repr(Config("postgresql://me:geheim@h/d"))
    assert "me:***@h" in repr(Config("postgresql://me:geheim@h/d"))
    with pytest.raises(ConfigError) as refused:
        backend_of("mysql://me:geheim@h/d")
    assert "geheim" not in str(refused.value)


passwords = st.text(st.characters(codec="utf-8", exclude_characters="\0*"), min_size=4, max_size=20).filter(
    lambda p: p.strip() == p and not p.isdigit() and p not in "postgresql://me@host/db *** password"
)


@given(passwords)
def test_no_percent_encoded_password_is_ever_shown(password):
    for raw in (quote(password, safe=""), quote(password)):
        assert redact(f"postgresql://me:{raw}@host/db") == "postgresql://me:***@host/db"
    assert (
        redact(f"postgresql://host/db?password={quote(password, safe='')}")
        == "postgresql://host/db?password=***"
    )


@given(passwords)
def test_no_spelling_of_a_password_is_left_in_a_driver_s_message(password):
    encoded = quote(password, safe="")
    dsn = f"postgresql://me:{encoded}@host/db"
    for spelling in (password, encoded, quote(password)):
        assert spelling not in scrub(f"connection to {spelling} failed", dsn)


def test_an_unencoded_password_is_left_in_no_piece_either():
    # libpq takes what follows the first @ for the host.
    message = 'could not translate host name "eim@h" to address'
    assert scrub(message, "postgresql://me:geh@eim@h/d") == 'could not translate host name "***@h" to address'
    assert scrub('invalid port "geh"', "postgresql://me:geh/eim@h/d") == 'invalid port "***"'


def test_the_password_of_a_conninfo_goes_from_messages_too():
    assert scrub("bad: it's", "host=h password='it\\'s'") == "bad: ***"


def test_a_very_short_password_does_not_tear_other_words_apart():
    assert scrub('password "a" of database a', "pg://u:a@h/d") == 'password "***" of database ***'


def test_a_text_without_the_password_stays_as_it_is():
    assert scrub("server closed the connection", "pg://u:geheim@h/d") == "server closed the connection"
    assert scrub("server closed the connection", "pg://h/d") == "server closed the connection"


def test_the_signature_and_the_table_name_the_same_settings():
    assert list(inspect.signature(Config).parameters) == list(SETTINGS)
    assert all(s.name == name and s.meaning for name, s in SETTINGS.items())
    variables = [s.variable for s in SETTINGS.values() if s.variable]
    assert len(variables) == len(set(variables))


def test_every_default_fits_its_row():
    config = Config("sqlite::memory:")
    for name, setting in SETTINGS.items():
        value = getattr(config, name)
        assert setting.kind.fits(value) or (value is None and setting.may_be_none), name
