"""Which object a DSN names, and where the environment says that S3 is."""

import pytest

import pgqrs
from pgqrs.store.s3.bucket import S3Object
from tests.s3_server import BUCKET

pytestmark = pytest.mark.slow

KEYS = [
    "plain.db",
    "in/some/folder.db",
    "with space.db",
    "ü 日本.db",
    "per%20cent%.db",
    "a+b&c=d;e,f:g$!~*.db",
    "back\\slash.db",
    "[brackets]{braces}.db",
    "quotes'\"`^|<>.db",
]


@pytest.mark.parametrize("key", KEYS)
def test_the_key_is_the_one_that_the_dsn_names(key, proxy, s3_server):
    with pgqrs.connect(f"s3://{BUCKET}/{key}") as store:
        store.install()
        store.enqueue("tasks", 1)
    assert s3_server.body(f"s3://{BUCKET}/{key}")
    with pgqrs.connect(f"s3://{BUCKET}/{key}") as store:
        assert [q.ready for q in store.queues()] == [1]
    s3_server.delete(f"s3://{BUCKET}/{key}")


@pytest.mark.parametrize(
    "key", ["/a.db", "a//b.db", "a/", "./a.db", "a/../b.db", "a\nb.db", "a\x7f.db", "a#b", "a?b"]
)
def test_keys_that_cannot_be_told_apart_or_sent_are_refused(key, proxy):
    with pytest.raises(pgqrs.ConfigError, match="names no object of S3"):
        pgqrs.connect(f"s3://{BUCKET}/{key}").open()
    assert not proxy.counts


def test_stores_of_a_process_share_a_copy_however_they_spell_the_scheme(address):
    with pgqrs.connect(address) as one, pgqrs.connect("S3" + address[2:]) as other:
        one.install()
        one.enqueue("tasks", 1)
        assert [q.ready for q in other.queues()] == [1]


@pytest.mark.parametrize(
    "value",
    [
        "nonsense",
        "127.0.0.1:9000",
        "ftp://host",
        "http://",
        "http://host:port",
        "http://[::1",
        "http://a b",
        "http://ü:9",
    ],
)
def test_an_endpoint_that_is_no_address_is_refused(value, address, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", value)
    with pytest.raises(pgqrs.ConfigError, match="it must be like https://host"):
        pgqrs.connect(address).open()


def test_a_password_in_the_endpoint_is_refused_and_not_shown(address, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://me:s3cret@127.0.0.1:9")
    with pytest.raises(pgqrs.ConfigError, match="holds a user or a password") as raised:
        pgqrs.connect(address).open()
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize("spelling", ["{}/", " {} ", "HTTP{rest}"])
def test_an_endpoint_may_be_spelled_in_several_ways(spelling, address, proxy, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", spelling.format(proxy.endpoint, rest=proxy.endpoint[4:]))
    with pgqrs.connect(address) as store:
        assert store.install() > 0


def test_that_of_s3_alone_goes_before_that_of_all_services(address, proxy, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pgqrs.connect(address) as store:
        assert store.install() > 0


def test_an_empty_endpoint_is_none(address, monkeypatch):
    """The driver would take it for an address, and panic."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "")
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    assert S3Object(address)._store.config["endpoint"] == "https://s3.eu-central-1.amazonaws.com"


@pytest.mark.parametrize("bucket", ["my bucket", "bücket", "a:b", "a\\b"])
def test_what_can_be_no_buckets_name_is_refused(bucket):
    with pytest.raises(pgqrs.ConfigError, match="names no object of S3"):
        pgqrs.connect(f"s3://{bucket}/key").open()


@pytest.mark.parametrize(
    "name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION"]
)
def test_a_key_with_a_line_break_is_refused_and_not_shown(name, address, monkeypatch):
    monkeypatch.setenv(name, "s3cret\n")
    with pytest.raises(pgqrs.ConfigError, match=f"{name} holds a line break") as raised:
        pgqrs.connect(address).open()
    assert "s3cret" not in str(raised.value)
