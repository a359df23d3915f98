"""A write is believed where the store heeds the conditions of a PUT, however it or a proxy writes an ETag."""

import pytest

import pgqrs
from pgqrs.store.s3.bucket import PROBE_SUFFIX, S3Object
from tests.cli_runner import Pgqrs
from tests.s3.faults import PASS, REFUSE, answer
from tests.s3.looking import payloads
from tests.s3.test_conflicts import both_at_once


@pytest.mark.parametrize("dropped", [{"if-match"}, {"if-match", "if-none-match"}])
def test_no_write_is_believed_where_a_proxy_drops_the_condition(dropped, opened, proxy):
    proxy.drops = dropped
    for store in (opened(), opened()):
        for _ in range(2):
            with pytest.raises(
                pgqrs.PgqrsConnectionError, match="does not heed the header If-Match of a PUT"
            ):
                store.enqueue("tasks", 1)


def test_two_writers_through_such_a_proxy_are_told_of_no_write_that_is_not_there(
    store, opened, proxy, s3_server, address, tmp_path
):
    store.enqueue("tasks", "before")
    proxy.drops = {"if-match"}
    writers = [opened(), opened()]
    told = ["before"]
    for n in range(10):
        ended = both_at_once(*[lambda w=w, n=n: (w.enqueue("tasks", n), n)[1] for w in writers])
        told += [end for end in ended if isinstance(end, int)]
    there = payloads(s3_server, address, tmp_path)
    assert '"before"' in there
    assert {f'"{t}"' if t == "before" else str(t) for t in told} <= set(there)


def test_an_object_is_not_made_twice_where_a_proxy_drops_the_other_condition(opened, proxy):
    proxy.drops = {"if-none-match"}
    store = opened()
    store.install()
    with pytest.raises(pgqrs.PgqrsConnectionError, match="does not heed the header If-None-Match"):
        store.enqueue("tasks", 1)


def test_the_command_line_says_so_too(store, address, proxy, monkeypatch, capfd):
    store.queue("tasks")
    proxy.drops = {"if-match"}
    ended = Pgqrs(address, monkeypatch, capfd)("enqueue", "tasks", "1", "--dsn", address)
    assert ended.code == 3
    assert "look for a proxy on the way that drops the header" in ended.err


def test_a_store_that_heeds_the_condition_is_tried_out_once(store, proxy):
    store.queue("tasks")
    puts = proxy.puts
    store.enqueue("tasks", 1)
    store.enqueue("tasks", 2)
    assert proxy.puts == puts + 2


def test_the_trial_leaves_nothing_behind(store, s3_server, address):
    store.enqueue("tasks", 1)
    assert s3_server.body(address + PROBE_SUFFIX) is None


def test_nor_where_the_condition_is_dropped(store, opened, proxy, s3_server, address):
    proxy.drops = {"if-match"}
    with pytest.raises(pgqrs.PgqrsConnectionError):
        opened().queue("tasks")
    assert s3_server.body(address + PROBE_SUFFIX) is None


def test_a_key_that_may_write_the_object_alone_will_do(store, opened, proxy, monkeypatch):
    real = S3Object._put

    def put(self, operation, body, expected, marker, key=None):
        if key is not None and key.endswith(PROBE_SUFFIX):
            proxy.next("PUT", answer(403))
        return real(self, operation, body, expected, marker, key)

    monkeypatch.setattr(S3Object, "_put", put)
    assert opened().enqueue("tasks", 1) == 1
    proxy.drops = {"if-match"}
    with pytest.raises(pgqrs.PgqrsConnectionError, match="does not heed the header If-Match"):
        opened().enqueue("tasks", 2)


def test_a_trial_that_gets_no_answer_is_made_again(store, opened, proxy):
    store.queue("tasks")
    other = opened()
    proxy.next("PUT", PASS, answer(503), REFUSE)
    assert other.enqueue("tasks", 1) == 1


def bare(etag):
    return etag.strip('"')


def weak(etag):
    return f"W/{etag}"


@pytest.mark.parametrize("written", [bare, weak, lambda e: weak(bare(e))], ids=["bare", "weak", "both"])
def test_an_etag_may_be_written_in_other_ways(written, opened, proxy, s3_server, address, tmp_path):
    proxy.etag = written
    store, other = opened(), opened()
    store.enqueue("tasks", 1)
    for n in range(2, 5):
        store.enqueue("tasks", n)
    assert payloads(s3_server, address, tmp_path) == ["1", "2", "3", "4"]
    assert [q.ready for q in other.queues()] == [4]


def test_a_proxy_that_changes_its_way_of_writing_them_is_no_writer(
    store, proxy, s3_server, address, tmp_path
):
    store.enqueue("tasks", 1)
    proxy.etag = bare
    store.enqueue("tasks", 2)
    proxy.etag = weak
    store.enqueue("tasks", 3)
    assert payloads(s3_server, address, tmp_path) == ["1", "2", "3"]


def test_answers_without_an_etag_are_refused(opened, proxy):
    proxy.etag = lambda _: None
    with pytest.raises(pgqrs.PgqrsConnectionError, match="ETag"):
        opened().install()
