"""Where a store's settings are from: explicit beats environment beats file beats default, for `connect` as for the command line.
`connect_with` takes a Config, which is explicit as a whole."""

import inspect
import json
import math
import subprocess

import pytest

import pgqrs
from pgqrs import Config, ConfigError, DurabilityMode
from pgqrs.settings import SETTINGS
from tests.cli_runner import COMMAND

GIVEN = {
    "connection_timeout_seconds": 2.5,
    "default_lock_time_seconds": 60,
    "default_max_batch_size": 7,
    "max_read_ct": 9,
    "heartbeat_interval_seconds": 2,
    "poll_interval_ms": 250,
    "max_payload_size_bytes": 4096,
    "max_string_length": 10,
    "max_object_depth": 3,
    "forbidden_keys": ["secret"],
    "required_keys": ["id"],
    "max_enqueue_per_second": None,
    "max_enqueue_burst": 5,
    "reclaim_after_seconds": 30,
    "sqlite_use_wal": False,
    "s3_mode": DurabilityMode.Local,
    "s3_cache_dir": "some/folder",
    "prepared_statements": False,
    "listen_dsn": "postgresql://direct/x",
}


@pytest.fixture(autouse=True)
def an_empty_folder_and_environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for variable in [s.variable for s in SETTINGS.values() if s.variable]:
        monkeypatch.delenv(f"PGQRS_{variable}", raising=False)
    monkeypatch.delenv("PGQRS_CONFIG_FILE", raising=False)


def config_of(open_it):
    """The settings of the store that this opens, blocking and async."""
    with open_it() as store:
        return store.config


async def async_config_of(open_it):
    async with open_it() as store:
        return store.config


# Given


@pytest.mark.parametrize("name", GIVEN)
def test_every_setting_is_a_keyword(name):
    assert getattr(Config("sqlite://x.db", **{name: GIVEN[name]}), name) == GIVEN[name]
    assert getattr(Config("sqlite://x.db"), name) != GIVEN[name], "another by default"


def test_there_is_no_setting_that_is_not_a_keyword():
    settings = {name.lstrip("_") for name in vars(Config("sqlite://x.db"))}
    settings |= {"prepared_statements", "listen_dsn"}  # which are the class's own where they were not given
    assert (
        settings
        == set(inspect.signature(Config).parameters)
        == GIVEN.keys() | {"dsn", "schema", "max_connections"}
    )


def test_a_keyword_s_value_is_judged_as_an_assignment_is():
    with pytest.raises(ConfigError, match="max_read_ct is a whole number of at least 1, not 0"):
        Config("sqlite://x.db", max_read_ct=0)
    with pytest.raises(ConfigError, match="required_keys is a list of text, not 'id'"):
        Config("sqlite://x.db", required_keys="id")
    with pytest.raises(TypeError, match="max_conections"):
        Config("sqlite://x.db", max_conections=3)


def test_a_list_that_was_given_stays_the_caller_s():
    mine = ["id"]
    config = Config("sqlite://x.db", required_keys=mine)
    config.required_keys.append("name")
    assert mine == ["id"]


@pytest.mark.parametrize("seconds", [math.inf, math.nan, -1, -math.inf, 10**400, 3.2e9, True, "5"])
@pytest.mark.parametrize(
    "name", ["connection_timeout_seconds", "default_lock_time_seconds", "heartbeat_interval_seconds"]
)
def test_seconds_are_from_0_to_a_hundred_years(name, seconds):
    with pytest.raises(ConfigError, match=rf"{name} is a number of seconds from 0 to 3153600000"):
        Config("sqlite://x.db", **{name: seconds})


def test_a_setting_that_was_given_is_heeded():
    with (
        pgqrs.connect_with(Config("sqlite://x.db", max_payload_size_bytes=64)) as store,
        pytest.raises(pgqrs.PgqrsError, match="over the limit of 64"),
    ):
        store.enqueue("tasks", "x" * 64)


# One rule


def test_connect_reads_the_file_and_the_environment_beats_it(tmp_path, monkeypatch):
    (tmp_path / "pgqrs.toml").write_text(
        'dsn = "sqlite://file.db"\nmax_read_ct = 3\nmax_payload_size_bytes = 64\n'
    )
    config = config_of(pgqrs.connect)
    assert (config.dsn, config.max_read_ct, config.max_payload_size_bytes) == ("sqlite://file.db", 3, 64)
    monkeypatch.setenv("PGQRS_DSN", "sqlite://env.db")
    monkeypatch.setenv("PGQRS_MAX_READ_CT", "4")
    config = config_of(pgqrs.connect)
    assert (config.dsn, config.max_read_ct, config.max_payload_size_bytes) == ("sqlite://env.db", 4, 64)
    assert (tmp_path / "file.db").exists()
    assert (tmp_path / "env.db").exists()


async def test_an_async_store_follows_the_same_rule(tmp_path, monkeypatch):
    (tmp_path / "pgqrs.toml").write_text('dsn = "sqlite://file.db"\nmax_read_ct = 3\n')
    monkeypatch.setenv("PGQRS_MAX_CONNECTIONS", "2")
    config = await async_config_of(pgqrs.connect)
    assert (config.dsn, config.max_read_ct, config.max_connections) == ("sqlite://file.db", 3, 2)


def test_a_dsn_that_was_given_beats_the_rest_and_leaves_the_other_settings(tmp_path, monkeypatch):
    (tmp_path / "pgqrs.toml").write_text('dsn = "sqlite://file.db"\nmax_read_ct = 3\n')
    monkeypatch.setenv("PGQRS_DSN", "sqlite://env.db")
    config = config_of(lambda: pgqrs.connect("sqlite://given.db"))
    assert (config.dsn, config.max_read_ct) == ("sqlite://given.db", 3)


def test_a_config_is_explicit_as_a_whole(tmp_path, monkeypatch):
    (tmp_path / "pgqrs.toml").write_text("max_read_ct = 3\n")
    monkeypatch.setenv("PGQRS_MAX_CONNECTIONS", "2")
    config = config_of(lambda: pgqrs.connect_with(Config("sqlite://given.db")))
    assert (config.max_read_ct, config.max_connections) == (5, 16)


def test_the_command_line_and_a_program_meet_in_the_same_database(tmp_path):
    (tmp_path / "pgqrs.toml").write_text('dsn = "sqlite://file.db"\n')
    with pgqrs.connect() as store:
        store.enqueue("tasks", 1)
    listed = subprocess.check_output([*COMMAND, "queues", "--json"], cwd=tmp_path)
    assert [q["queue_name"] for q in json.loads(listed)] == ["tasks"]


def test_what_the_file_says_wrongly_is_told_by_connect_too(tmp_path):
    (tmp_path / "pgqrs.toml").write_text("max_read_ct = 0\n")
    with pytest.raises(ConfigError, match=r"pgqrs.toml: max_read_ct is a whole number"):
        pgqrs.connect("sqlite://given.db").open()


def test_nothing_is_read_before_a_connection_is_made(tmp_path):
    (tmp_path / "pgqrs.toml").write_text("max_read_ct = 0\n")
    connecting = pgqrs.connect("sqlite://given.db")
    (tmp_path / "pgqrs.toml").write_text("max_read_ct = 3\n")
    with connecting as store:
        assert store.config.max_read_ct == 3


@pgqrs.workflow
def doubled(n: int) -> int:
    return 2 * n


def test_the_supervisor_of_a_block_has_the_settings_of_its_store(tmp_path):
    (tmp_path / "pgqrs.toml").write_text('dsn = "sqlite://file.db"\n')
    with (
        pgqrs.connect_with(Config(f"sqlite://{tmp_path / 'given.db'}")) as store,
        store.workers(doubled, processes=1),
    ):
        assert store.trigger(doubled, 4).result(timeout=30) == 8
    assert not (tmp_path / "file.db").exists()
