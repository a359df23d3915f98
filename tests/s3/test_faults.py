"""S3 is slow, broken, or says nothing: what was promised holds, and nobody waits for ever."""

import threading
import time

import pytest

import pgqrs
from pgqrs.model.turns import Want
from pgqrs.model.writes import Archive, Write
from pgqrs.store import open_store
from pgqrs.store.migrations import VERSION
from pgqrs.store.s3 import bucket
from pgqrs.store.store import Identity
from tests.s3.faults import HOLD, LOSE, REFUSE, TEAR, TEAR_DOWN, answer, late
from tests.s3.looking import payloads


@pytest.mark.parametrize(
    "fault", [answer(500), answer(503), REFUSE, TEAR, LOSE], ids=["500", "503", "refused", "torn", "lost"]
)
@pytest.mark.parametrize("times", [1, 3])
def test_a_put_that_fails_is_tried_again_and_done_once(
    fault, times, store, proxy, s3_server, address, tmp_path
):
    store.queue("tasks")
    proxy.next("PUT", *[fault] * times)
    assert store.enqueue("tasks", 1) == 1
    assert store.enqueue("tasks", 2) == 2
    assert payloads(s3_server, address, tmp_path) == ["1", "2"]


@pytest.mark.parametrize(
    "fault", [answer(500), answer(503), REFUSE, TEAR_DOWN], ids=["500", "503", "refused", "torn"]
)
def test_a_get_that_fails_is_tried_again(fault, store, opened, proxy):
    store.enqueue("tasks", 1)
    proxy.next("GET", fault, fault)
    assert [q.ready for q in opened().queues()] == [1]


def test_a_put_that_was_done_and_whose_answer_was_lost_is_not_done_twice(
    store, proxy, s3_server, address, tmp_path
):
    store.queue("tasks")
    puts = proxy.puts
    proxy.next("PUT", LOSE)
    store.enqueue("tasks", 1)
    assert proxy.puts == puts + 1, "what is there carries our marker: nothing more to send"
    assert payloads(s3_server, address, tmp_path) == ["1"]


def test_the_object_that_a_lost_put_makes_is_ours(opened, proxy):
    proxy.next("PUT", LOSE)
    assert opened().install() == VERSION


def test_a_put_that_arrives_after_its_retry_changes_nothing(store, proxy, s3_server, address, tmp_path):
    """It was under way all the while; its condition no longer holds."""
    store.queue("tasks")
    proxy.next("PUT", HOLD)
    assert store.enqueue("tasks", 1) == 1
    store.enqueue("tasks", 2)
    assert proxy.deliver() == [412]
    assert payloads(s3_server, address, tmp_path) == ["1", "2"]
    assert store.enqueue("tasks", 3) == 3


def test_a_put_that_arrives_between_the_look_and_the_retry_is_ours(
    store, proxy, s3_server, address, tmp_path, monkeypatch
):
    monkeypatch.setattr(bucket, "BACKOFF_S", (0.3, 0.3))
    store.queue("tasks")
    proxy.next("PUT", late(0.1))
    assert store.enqueue("tasks", 1) == 1
    assert payloads(s3_server, address, tmp_path) == ["1"]


def test_a_put_that_arrives_after_we_gave_up_is_found_by_the_next_call(
    store, proxy, s3_server, address, tmp_path
):
    store.queue("tasks")
    proxy.next("PUT", HOLD, *[REFUSE] * 4)
    with pytest.raises(pgqrs.PgqrsConnectionError, match="unknown whether"):
        store.enqueue("tasks", 1)
    assert proxy.deliver() == [200]
    assert store.enqueue("tasks", 2) == 2
    assert payloads(s3_server, address, tmp_path) == ["1", "2"]


def test_whoever_writes_after_a_lost_put_is_not_overwritten(
    store, opened, proxy, s3_server, address, tmp_path, monkeypatch
):
    """Ours was done, its answer lost, and theirs came on top before we looked: that cannot be told from ours never having been
    done, so it is told as unknown."""
    store.queue("tasks")
    other = opened()
    other.queues()
    proxy.next("PUT", LOSE)
    proxy.next("HEAD", *[REFUSE] * 5)

    def theirs():
        while not payloads(s3_server, address, tmp_path / "w"):
            time.sleep(0.005)
        time.sleep(0.06)
        other.enqueue("tasks", "theirs")

    (tmp_path / "w").mkdir()
    monkeypatch.setattr(bucket, "BACKOFF_S", (0.3, 0.1))
    thread = threading.Thread(target=theirs)
    thread.start()
    with pytest.raises(pgqrs.PgqrsConnectionError, match="unknown whether") as raised:
        store.enqueue("tasks", "ours")
    thread.join()
    assert type(raised.value) is pgqrs.PgqrsConnectionError
    assert payloads(s3_server, address, tmp_path) == ['"ours"', '"theirs"']


def test_an_s3_that_is_away_is_told_after_a_bounded_time(store, proxy):
    store.queue("tasks")
    for method in ("PUT", "GET", "HEAD"):
        proxy.always(method, answer(503))
    began = time.monotonic()
    with pytest.raises(pgqrs.PgqrsConnectionError, match="503"):
        store.enqueue("tasks", 1)
    assert time.monotonic() - began < 5
    for method in ("PUT", "GET", "HEAD"):
        proxy.always(method, None)
    assert store.enqueue("tasks", 1) == 1


def test_connecting_to_an_s3_that_is_away_says_how_to_name_another(address, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(pgqrs.PgqrsConnectionError, match="AWS_ENDPOINT_URL"):
        pgqrs.connect(address).open()


def test_a_bucket_that_is_not_there_is_named(proxy):
    config = pgqrs.Config("s3://no-such-bucket/key")
    with pytest.raises(pgqrs.PgqrsConnectionError, match="there is no bucket 'no-such-bucket'"):
        pgqrs.connect_with(config).open()
    config.s3_mode = pgqrs.DurabilityMode.Local
    with pgqrs.connect_with(config) as store:
        store.install()
        with pytest.raises(pgqrs.PgqrsConnectionError, match="there is no bucket 'no-such-bucket'"):
            pgqrs.as_s3(store).sync()


def test_an_object_damaged_in_s3_is_not_taken(store, opened, s3_server, address):
    """Half an upload that somebody's storage took for whole: its checksum tells."""
    from tests.s3_server import BUCKET, key_of

    body = s3_server.body(address)
    head = s3_server.witness.head_object(Bucket=BUCKET, Key=key_of(address))
    s3_server.witness.put_object(
        Bucket=BUCKET, Key=key_of(address), Body=body[: len(body) // 2], Metadata=head["Metadata"]
    )
    with pytest.raises(pgqrs.PgqrsConnectionError, match="checksum"):
        opened()


def with_a_result(address):
    """A supervisor's store, and what it has to write of a message that it holds."""
    store = open_store(pgqrs.Config(address), steady_plans=True)
    store.install()
    queue = store.ensure_queue("tasks")
    store.enqueue(queue, [b"1"])
    _, consumers = store.register_supervisor(Identity("me", "h", "b", "n", 1, 1), {"tasks": queue}, 15.0)
    [taken] = store.turn((), [Want(queue, consumers["tasks"], 1, 5)]).taken
    return store, Write(taken.messages[0].claim, message=Archive())


def test_a_turn_of_unknown_outcome_is_made_again_and_applied_once(address, proxy, s3_server, tmp_path):
    store, write = with_a_result(address)
    proxy.next("PUT", HOLD, *[REFUSE] * 4)
    with pytest.raises(pgqrs.PgqrsConnectionError):
        store.turn([write])
    assert proxy.deliver() == [200]
    assert [o.applied for o in store.turn([write], unsure=True).outcomes] == [True]
    store.close()


def test_a_loser_whose_look_fails_is_still_told_of_the_conflict(store, opened, proxy, monkeypatch):
    from pgqrs.store.s3 import database as s3

    other = opened()
    other.queue("tasks")
    time.sleep(0.06)
    store.enqueue("tasks", "theirs")
    monkeypatch.setattr(s3, "FRESH_S", 60.0)
    proxy.next("HEAD", REFUSE, answer(503))
    with pytest.raises(pgqrs.ConflictError):
        other.enqueue("tasks", "ours")


def test_no_further_try_begins_after_a_while(store, proxy, monkeypatch):
    monkeypatch.setattr(bucket, "BACKOFF_S", (0.1,) * 50)
    monkeypatch.setattr(bucket, "GIVE_UP_S", 0.5)
    store.queue("tasks")
    puts, looks = proxy.puts, proxy.counts["HEAD"]
    for method in ("PUT", "HEAD"):
        proxy.always(method, answer(503))
    began = time.monotonic()
    with pytest.raises(pgqrs.PgqrsConnectionError, match="503"):
        store.enqueue("tasks", 1)
    assert time.monotonic() - began < 1.5
    assert 2 <= proxy.puts - puts <= 5
    assert proxy.counts["HEAD"] - looks == proxy.puts - puts, "one look each"


def test_an_s3_that_says_nothing_at_all_is_given_up(opened, proxy, monkeypatch):
    monkeypatch.setattr(bucket, "REQUEST_S", 0.3)
    monkeypatch.setattr(bucket, "GIVE_UP_S", 0.5)
    store = opened()
    store.install()
    store.queue("tasks")
    proxy.latency_s = 4.0
    began = time.monotonic()
    with pytest.raises(pgqrs.PgqrsConnectionError, match="could not be written"):
        store.enqueue("tasks", 1)
    assert time.monotonic() - began < 3
    proxy.latency_s = 0.0


def test_an_interrupted_put_is_looked_for_by_the_next_call(store, s3_server, address, tmp_path, monkeypatch):
    store.queue("tasks")
    real = bucket.S3Object.put

    def put(*a):
        real(*a)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(bucket.S3Object, "put", put)
        with pytest.raises(KeyboardInterrupt):
            store.enqueue("tasks", 1)
    assert store.enqueue("tasks", 2) == 2
    assert payloads(s3_server, address, tmp_path) == ["1", "2"]


REFUSED = """<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>SignatureDoesNotMatch</Code><Message>The signature we calculated does not match.</Message>
<AWSAccessKeyId>test</AWSAccessKeyId><CanonicalRequest>x-amz-security-token:s3ss10n</CanonicalRequest></Error>"""


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_what_is_refused_is_told_with_its_reason_and_without_the_session(
    method, address, store, opened, proxy, monkeypatch
):
    import traceback

    store.queue("tasks")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "s3ss10n")
    proxy.always(method, answer(403, REFUSED))
    began = proxy.counts[method]
    with pytest.raises(pgqrs.PgqrsConnectionError) as raised:
        store.enqueue("tasks", 1) if method == "PUT" else opened()
    assert "SignatureDoesNotMatch: The signature we calculated does not match." in str(raised.value)
    assert "AWS_SECRET_ACCESS_KEY" in str(raised.value)
    assert "s3ss10n" not in "".join(traceback.format_exception(raised.value))
    assert proxy.counts[method] == began + 1, "trying again would not help"


@pytest.mark.parametrize("rest", [b"", b"\x10\0\1\1\0@  " + b"no pages" * 2000])
def test_a_damaged_database_without_our_checksum_is_not_taken(rest, store, opened, s3_server, address):
    s3_server.put(address, b"SQLite format 3\0" + rest)
    with pytest.raises(pgqrs.PgqrsConnectionError, match="is a damaged SQLite database"):
        opened()
    time.sleep(0.06)
    with pytest.raises(pgqrs.PgqrsConnectionError, match="is a damaged SQLite database"):
        store.queues()


def test_half_a_database_without_our_checksum_is_not_taken(store, opened, s3_server, address):
    body = s3_server.body(address)
    s3_server.put(address, body[: len(body) // 2])
    with pytest.raises(pgqrs.PgqrsConnectionError, match="is a damaged SQLite database"):
        opened()


def test_a_supervisor_does_not_take_a_damaged_object_for_values_that_are_refused(address, s3_server):
    """Its results wait until somebody has mended it."""
    store, write = with_a_result(address)
    whole = s3_server.body(address)
    s3_server.put(address, b"something else")
    for _ in range(2):
        with pytest.raises(pgqrs.PgqrsConnectionError, match="is no SQLite database"):
            store.turn([write])
    s3_server.put(address, whole)
    assert [o.applied for o in store.turn([write]).outcomes] == [True]
    store.close()


def test_an_empty_object_is_no_database(store, opened, s3_server, address):
    s3_server.put(address, b"")
    with pytest.raises(pgqrs.PgqrsConnectionError, match="is no SQLite database"):
        opened()


def test_somebody_elses_database_is_told_and_left_alone(opened, s3_server, address, tmp_path):
    import sqlite3

    from tests.s3.looking import query

    connection = sqlite3.connect(tmp_path / "theirs.db")
    connection.execute("create table theirs (n)")
    connection.close()
    s3_server.put(address, (tmp_path / "theirs.db").read_bytes())
    store = opened()
    with pytest.raises(pgqrs.SchemaError, match="holds no complete pgqrs schema"):
        store.verify()
    assert query(s3_server, address, tmp_path, "select name from sqlite_master") == [("theirs",)]
