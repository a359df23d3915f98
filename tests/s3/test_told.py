"""What goes wrong with S3 is told by its name, on the command line as in a program, with the way out."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

import pgqrs as library
from pgqrs.store.s3.bucket import S3Object
from tests.cli_runner import Pgqrs
from tests.s3.faults import Fault

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
READING = [["queues"], ["verify"], ["trigger", "double", "1"]]
PROGRAM = """
import resource, sys, pgqrs
with pgqrs.connect(sys.argv[1]) as store:
    store.enqueue("tasks", 1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
    for _ in range(9):
        store.enqueue("tasks", "x" * 100_000)
"""


@pytest.fixture
def pgqrs(proxy, monkeypatch, capfd):
    return Pgqrs("s3://no-such-bucket/a.db", monkeypatch, capfd)


def failed(status, code="SomeCode"):
    return Fault("answer", status, xml=f"<Error><Code>{code}</Code><Message>some words</Message></Error>")


@pytest.mark.parametrize("command", [*READING, ["install"]], ids=lambda c: c[0])
def test_a_missing_bucket(command, pgqrs):
    ended = pgqrs(*command)
    assert ended.code == 3
    assert "there is no bucket 'no-such-bucket'" in ended.err
    assert "pgqrs install" not in ended.err


@pytest.mark.parametrize("command", READING, ids=lambda c: c[0])
def test_a_missing_key(command, pgqrs, address):
    ended = pgqrs(*command, "--dsn", address)
    assert ended.code == 3
    assert ended.err.startswith(f"pgqrs: there is no database at {address} yet")
    assert f"make it: pgqrs install --dsn {address}" in ended.err
    assert pgqrs("install", "--dsn", address).code == 0
    assert pgqrs("queues", "--dsn", address).code == 0


def test_an_object_without_tables_is_something_else(pgqrs, address, s3_server):
    s3_server.put(address, b"")
    assert "is no SQLite database" in pgqrs("queues", "--dsn", address).err


@pytest.mark.parametrize(
    ("there", "missing"),
    [("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID")],
)
@pytest.mark.parametrize("empty", [True, False])
def test_half_a_key(there, missing, empty, address, monkeypatch):
    monkeypatch.setenv(missing, "") if empty else monkeypatch.delenv(missing)
    with pytest.raises(library.ConfigError, match=f"^{there} is set and {missing} is not: S3 takes both$"):
        library.connect(address).open()


NO_ROLE = "Generic S3 error: Error performing PUT http://169.254.169.254/latest/api/token in 5.0s - HTTP error: error sending request"


@pytest.mark.parametrize("call", [lambda o: o.fetch(), lambda o: o.put(b"", None)], ids=["fetch", "put"])
def test_no_key_at_all(call, address, monkeypatch):
    """The driver asks for the machine's role then, at an address that says nothing to anybody."""
    s3 = S3Object(address)

    def no_role(*_):
        raise s3._obstore.exceptions.GenericError(NO_ROLE)

    monkeypatch.setattr(s3, "_get", no_role)
    monkeypatch.setattr(s3, "_put", no_role)
    with pytest.raises(
        library.PgqrsConnectionError, match=f"^no credentials were found for {address}"
    ) as told:
        call(s3)
    assert "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in str(told.value)


@pytest.mark.parametrize("status", [301, 400, 405, 501])
def test_a_definite_answer_is_a_refusal_and_asked_for_once(status, address, proxy):
    s3 = S3Object(address)
    for call, method in ((s3.fetch, "GET"), (s3.look, "HEAD"), (lambda: s3.put(b"", None), "PUT")):
        proxy.counts.clear()
        proxy.always(method, failed(status))
        with pytest.raises(library.PgqrsConnectionError, match=f"^S3 refuses {address} at ") as told:
            call()
        assert sum(proxy.counts.values()) == proxy.counts[method] == 1
        assert str(status) in str(told.value) or "region" in str(told.value)
        proxy.always(method, None)


def test_an_answer_that_may_change_is_no_unreachable_s3(address, proxy):
    proxy.always("GET", failed(503))
    with pytest.raises(library.PgqrsConnectionError, match=f"^S3 fails for {address} at .*503"):
        S3Object(address).fetch()
    assert proxy.counts["GET"] == 5


def test_an_upload_that_was_too_slow_is_sent_again(address, proxy, s3_server):
    proxy.next("PUT", failed(400, "RequestTimeout"))
    S3Object(address).put(b"here", None)
    assert s3_server.body(address) == b"here"


def test_an_object_that_was_removed_is_made_again_where_s3_says_404_of_it(address, proxy, s3_server):
    """As Amazon does to If-Match; others say 412."""
    s3 = S3Object(address)
    version = s3.put(b"old", None)
    s3_server.delete(address)
    proxy.next("PUT", failed(404, "NoSuchKey"))
    s3.put(b"new", version.etag)
    assert s3_server.body(address) == b"new"


@pytest.mark.parametrize("variable", ["XDG_CACHE_HOME", "PGQRS_S3_CACHE_DIR"])
def test_a_cache_folder_that_cannot_be_used(variable, pgqrs, address, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(variable, str(tmp_path / "file"))
    told = pgqrs("install", "--dsn", address).err
    assert told.startswith(f"pgqrs: the S3 cache folder {tmp_path / 'file'}/")
    assert f"in which the local copy of {address} is kept, cannot be used: Not a directory" in told
    assert "XDG_CACHE_HOME, PGQRS_S3_CACHE_DIR or s3_cache_dir" in told
    monkeypatch.setenv(variable, str(tmp_path / "folder"))
    assert pgqrs("install", "--dsn", address).code == 0
    assert list((tmp_path / "folder").rglob("pgqrs.db"))


def test_a_cache_folder_that_is_full(address, tmp_path):
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, address, "300000"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    told = ended.stderr.splitlines()[-1]
    assert told.startswith(f"pgqrs.errors.PgqrsConnectionError: the S3 cache folder {tmp_path}/")
    assert "cannot be used: " in told
    assert "XDG_CACHE_HOME, PGQRS_S3_CACHE_DIR or s3_cache_dir" in told


@pytest.mark.parametrize("bytes_max", [0, 3000, 40_000])
def test_one_that_is_full_from_the_start(bytes_max, address, tmp_path):
    ended = subprocess.run(
        [sys.executable, "-m", "pgqrs", "install", "--dsn", address],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_max,) * 2),
    )
    assert ended.returncode in (2, 3), ended.stderr
    assert ended.stderr.startswith(f"pgqrs: the S3 cache folder {tmp_path}/")
    assert "XDG_CACHE_HOME, PGQRS_S3_CACHE_DIR or s3_cache_dir" in ended.stderr
