"""Settings from the environment and a file: explicit beats environment beats file beats default."""

import json
import sys

import pytest

import pgqrs
from pgqrs import Config, ConfigError, DurabilityMode

VARIABLES = {
    "DSN": ("sqlite://env.db", "dsn", "sqlite://env.db"),
    "SCHEMA": ("app", "schema", "app"),
    "MAX_CONNECTIONS": ("4", "max_connections", 4),
    "CONNECTION_TIMEOUT": ("2.5", "connection_timeout_seconds", 2.5),
    "DEFAULT_LOCK_TIME": ("60", "default_lock_time_seconds", 60),
    "DEFAULT_BATCH_SIZE": ("7", "default_max_batch_size", 7),
    "MAX_READ_CT": ("9", "max_read_ct", 9),
    "HEARTBEAT_INTERVAL": ("2", "heartbeat_interval_seconds", 2),
    "POLL_INTERVAL_MS": ("250", "poll_interval_ms", 250),
    "SQLITE_USE_WAL": ("false", "sqlite_use_wal", False),
    "S3_MODE": ("local", "s3_mode", DurabilityMode.Local),
    "S3_CACHE_DIR": ("some/folder", "s3_cache_dir", "some/folder"),
}

FILES = {
    "pgqrs.toml": 'dsn = "sqlite://file.db"\nmax_connections = 3\nmax_read_ct = 8\nforbidden_keys = ["secret"]\ns3_mode = "local"\n',
    "pgqrs.json": json.dumps(
        {
            "dsn": "sqlite://file.db",
            "max_connections": 3,
            "max_read_ct": 8,
            "forbidden_keys": ["secret"],
            "s3_mode": "local",
        }
    ),
    "pgqrs.yaml": "dsn: sqlite://file.db\nmax_connections: 3\nmax_read_ct: 8\nforbidden_keys: [secret]\ns3_mode: local\n",
}


@pytest.fixture(autouse=True)
def an_empty_folder_and_environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (*VARIABLES, "CONFIG_FILE"):
        monkeypatch.delenv(f"PGQRS_{name}", raising=False)


# The environment


@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize("read", [Config.from_env, Config.load], ids=["from_env", "load"])
def test_each_variable_is_a_setting(monkeypatch, variable, read):
    text, name, value = VARIABLES[variable]
    assert getattr(read(), name) != value, "another by default"
    monkeypatch.setenv(f"PGQRS_{variable}", text)
    assert getattr(read(), name) == value


def test_an_empty_variable_is_none_at_all(monkeypatch):
    monkeypatch.setenv("PGQRS_SCHEMA", "")
    monkeypatch.setenv("PGQRS_MAX_CONNECTIONS", "")
    config = Config.from_env()
    assert (config.schema, config.max_connections) == ("public", 16)


def test_an_environment_can_be_handed_in():
    assert Config.from_env({"PGQRS_MAX_READ_CT": "3"}).max_read_ct == 3


@pytest.mark.parametrize(
    "variable,text",
    [
        ("MAX_CONNECTIONS", "many"), ("MAX_CONNECTIONS", "0"), ("CONNECTION_TIMEOUT", "-1"), ("MAX_READ_CT", "1.5"),
        ("SQLITE_USE_WAL", "perhaps"), ("S3_MODE", "sometimes"), ("SCHEMA", "1a"), ("POLL_INTERVAL_MS", "soon"),
    ],
)  # fmt: skip
def test_what_is_no_setting_is_refused_naming_the_variable(monkeypatch, variable, text):
    monkeypatch.setenv(f"PGQRS_{variable}", text)
    with pytest.raises(ConfigError, match=f"PGQRS_{variable}"):
        Config.from_env()


@pytest.mark.parametrize(
    "text,value",
    [("true", True), ("1", True), ("YES", True), ("on", True), ("0", False), ("No", False), ("off", False)],
)
def test_yes_and_no_can_be_said_in_several_ways(monkeypatch, text, value):
    monkeypatch.setenv("PGQRS_SQLITE_USE_WAL", text)
    assert Config.from_env().sqlite_use_wal is value


# A file


@pytest.mark.parametrize("name", ["pgqrs.toml", "pgqrs.json", "pgqrs.yaml"])
def test_a_file_s_settings_are_named_as_the_attributes_are(tmp_path, name):
    (tmp_path / name).write_text(FILES[name])
    for config in (Config.from_file(tmp_path / name), Config.from_file(name), Config.load()):
        assert (config.dsn, config.max_connections, config.max_read_ct) == ("sqlite://file.db", 3, 8)
        assert (config.forbidden_keys, config.s3_mode) == (["secret"], DurabilityMode.Local)
        assert config.schema == "public"


def test_yaml_without_its_library_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    (tmp_path / "pgqrs.yaml").write_text("dsn: sqlite://file.db\n")
    with pytest.raises(ConfigError, match=r"pip install .*, or write the settings to pgqrs.toml"):
        Config.load()


def test_another_file_can_be_named_by_a_variable(tmp_path, monkeypatch):
    (tmp_path / "pgqrs.toml").write_text("max_read_ct = 2\n")
    (tmp_path / "other.toml").write_text("max_read_ct = 7\n")
    monkeypatch.setenv("PGQRS_CONFIG_FILE", "other.toml")
    assert Config.load().max_read_ct == 7


@pytest.mark.parametrize(
    "name,text,told",
    [
        ("x.toml", "max_read_ct = ", "x.toml is malformed"),
        ("x.json", "{", "x.json is malformed"),
        ("x.json", "[1]", "holds no settings"),
        ("x.toml", "max_conections = 3", "unknown setting 'max_conections'; known are .*max_connections"),
        ("x.ini", "a = 1", r"ends with .toml, .yaml, .yml or .json"),
    ],
)
def test_what_cannot_be_read_is_refused_naming_the_file(tmp_path, name, text, told):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=told) as refused:
        Config.from_file(tmp_path / name)
    assert name in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        "max_connections = 0",
        'max_connections = "many"',
        's3_mode = "sometimes"',
        'schema = "1a"',
        "forbidden_keys = 5",
    ],
)
def test_a_setting_that_cannot_be_is_refused_naming_the_file(tmp_path, text):
    (tmp_path / "x.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"x.toml") as refused:
        Config.from_file(tmp_path / "x.toml")
    assert text.split()[0] in str(refused.value)


def test_a_file_that_is_not_there_is_told(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"nowhere.toml cannot be read"):
        Config.from_file("nowhere.toml")
    monkeypatch.setenv("PGQRS_CONFIG_FILE", "nowhere.toml")
    with pytest.raises(ConfigError, match=r"nowhere.toml cannot be read"):
        Config.load()


# Which of them counts


def test_explicit_beats_environment_beats_file_beats_default(tmp_path, monkeypatch):
    assert Config.load().max_read_ct == 5
    (tmp_path / "pgqrs.toml").write_text('max_read_ct = 6\ndsn = "sqlite://file.db"\nschema = "file"\n')
    assert (Config.load().max_read_ct, Config.load().dsn, Config.load().schema) == (
        6,
        "sqlite://file.db",
        "file",
    )
    monkeypatch.setenv("PGQRS_MAX_READ_CT", "7")
    monkeypatch.setenv("PGQRS_DSN", "sqlite://env.db")
    assert (Config.load().max_read_ct, Config.load().dsn, Config.load().schema) == (
        7,
        "sqlite://env.db",
        "file",
    )
    config = Config.load("sqlite://explicit.db", schema="explicit", max_read_ct=8)
    assert (config.max_read_ct, config.dsn, config.schema) == (8, "sqlite://explicit.db", "explicit")


def test_from_env_reads_no_file_and_from_file_no_environment(tmp_path, monkeypatch):
    (tmp_path / "pgqrs.toml").write_text("max_read_ct = 6\n")
    monkeypatch.setenv("PGQRS_MAX_CONNECTIONS", "3")
    assert (Config.from_env().max_read_ct, Config.from_env().max_connections) == (5, 3)
    assert (Config.from_file("pgqrs.toml").max_read_ct, Config.from_file("pgqrs.toml").max_connections) == (
        6,
        16,
    )


def test_an_explicit_none_is_nothing_said(monkeypatch):
    monkeypatch.setenv("PGQRS_SCHEMA", "app")
    assert Config.load(schema=None).schema == "app"


def test_what_is_explicit_is_checked_too():
    with pytest.raises(ConfigError, match="max_read_ct is a whole number"):
        Config.load(max_read_ct=0)
    with pytest.raises((ConfigError, AttributeError), match=r"max_red_ct.*max_read_ct"):
        Config.load(max_red_ct=5)


def test_a_loaded_config_connects(tmp_path, monkeypatch):
    monkeypatch.setenv("PGQRS_DSN", f"sqlite://{tmp_path}/x.db")
    with pgqrs.connect_with(Config.load()) as store:
        assert store.queue("tasks").id == 1


def test_what_none_switches_off_is_switched_off_by_none():
    config = pgqrs.Config.load(max_connections=None, max_enqueue_per_second=None)
    assert (config.max_connections, config.max_enqueue_per_second) == (16, None)
