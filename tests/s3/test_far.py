"""Writers of one object at different distances from it, and supervisors of which each sees the other's lease as S3 has it."""

import asyncio
import itertools
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

import pgqrs
from pgqrs.model.turns import Want
from pgqrs.model.writes import Archive, Write
from pgqrs.store import open_store
from pgqrs.store.s3 import conflicts, insisting
from pgqrs.store.store import Identity
from tests.crashes.supervised import Supervised, connected, eventually
from tests.s3.faults import Proxy
from tests.s3.looking import payloads, query

pytestmark = pytest.mark.timeout(240)
TARGET = str(Path(__file__).with_name("drained.py"))


@pytest.fixture
def far(s3_server):
    """Another way to the same S3, with a latency of its own."""
    with Proxy(s3_server).running() as far:
        yield far


@contextmanager
def by_way_of(proxy, monkeypatch, cache):
    with monkeypatch.context() as patched:
        patched.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        patched.setenv("XDG_CACHE_HOME", str(cache))
        yield


def supervising(address, name, host="h", lease_s=15.0):
    store = open_store(pgqrs.Config(address), steady_plans=True)
    store.install()
    queue = store.ensure_queue("jobs")
    supervisor, consumers = store.register_supervisor(
        Identity(name, host, "b", "n", 1, 1), {"jobs": queue}, lease_s
    )
    return store, queue, supervisor, consumers["jobs"]


@contextmanager
def working_without_an_end(store, queue, consumer):
    """A supervisor that writes one turn after another."""
    over, turns = threading.Event(), []

    def work():
        while not over.is_set():
            store.enqueue(queue, [b"0"])
            [taken] = store.turn((), [Want(queue, consumer, 1, 5)]).taken
            writes = [Write(m.claim, message=Archive()) for m in taken.messages]
            turns.append(len(store.turn(writes).outcomes))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield turns
    finally:
        over.set()
        thread.join()


@pytest.fixture
def quick(monkeypatch):
    """Rests come sooner, in the same proportion to a distant writer's round trip."""
    monkeypatch.setattr(conflicts, "BUSY_S", 1.0)
    monkeypatch.setattr(conflicts, "YIELD_S", 0.6)


@pytest.mark.slow
def test_a_distant_client_gets_in_beside_a_busy_supervisor(address, proxy, far, monkeypatch, tmp_path, quick):
    proxy.latency_s, far.latency_s = 0.01, 0.1
    store, queue, _, consumer = supervising(address, "near")
    with by_way_of(far, monkeypatch, tmp_path / "far"):
        client = connected(address).open()
    with working_without_an_end(store, queue, consumer) as turns:
        eventually(lambda: len(turns) > 3)
        assert client.enqueue("jobs", "far") > 0
    client.close()
    store.close()


@pytest.mark.slow
def test_a_supervisor_never_ends_on_a_conflict(address, proxy, far, monkeypatch, tmp_path, quick):
    """However short the patience of others is."""
    monkeypatch.setattr(insisting, "PATIENCE_S", 0.0)
    proxy.latency_s, far.latency_s = 0.01, 0.1
    store, queue, _, consumer = supervising(address, "near")
    with by_way_of(far, monkeypatch, tmp_path / "far"):
        with working_without_an_end(store, queue, consumer) as turns:
            eventually(lambda: len(turns) > 3)
            distant, _, supervisor, _ = supervising(address, "far")
            assert distant.renew_lease(supervisor, 15.0)
            distant.enqueue(queue, [b"1"])
        distant.close()
    store.close()


def test_what_a_supervisor_leaves_to_others_is_a_tenth(address, proxy, monkeypatch):
    waited = []
    store, queue, _, consumer = supervising(address, "one")
    monkeypatch.setattr(store.database, "wait", waited.append)
    monkeypatch.setattr(conflicts, "BUSY_S", 0.3)
    with working_without_an_end(store, queue, consumer):
        eventually(lambda: len(waited) > 1)
    assert set(waited) == {conflicts.YIELD_S}
    assert conflicts.YIELD_S <= 0.15 * 10.0
    store.close()


def test_one_that_has_pauses_anyway_leaves_nothing(address, monkeypatch):
    waited = []
    store, queue, _, consumer = supervising(address, "one")
    monkeypatch.setattr(store.database, "wait", waited.append)
    monkeypatch.setattr(conflicts, "BUSY_S", 0.2)
    monkeypatch.setattr(conflicts, "RESTED_S", 0.05)
    for _ in range(6):
        store.enqueue(queue, [b"0"])
        time.sleep(0.07)
        store.turn((), [Want(queue, consumer, 1, 5)])
    assert waited == []
    store.close()


def test_pauses_grow_and_patience_ends(monkeypatch):
    pauses = []

    def conflict():
        raise pgqrs.ConflictError("again")

    monkeypatch.setattr(insisting.random, "uniform", lambda low, high: high)
    clock = iter(range(1000))
    monkeypatch.setattr(insisting.time, "monotonic", lambda: next(clock))
    with pytest.raises(pgqrs.ConflictError):
        insisting.insist(conflict, pauses.append, patience_s=12.0)
    assert pauses[0] == insisting.PAUSE_S
    assert pauses == sorted(pauses)
    assert pauses[-1] == insisting.PAUSE_MAX_S
    assert len(pauses) == 11


@pytest.mark.slow
def test_a_conflict_is_not_told_as_a_database_that_is_away(address, far, monkeypatch, tmp_path, s3_server):
    """A real supervisor, far away from an S3 that a near writer hardly leaves to it: of its PUTs three
    of four find that the near one has written meanwhile, however fast this machine is.
    """
    monkeypatch.setenv("EVIDENCE", str(tmp_path / "evidence"))
    with connected(address) as store:
        store.enqueue_many("jobs", range(3))
    near, *_ = supervising(address, "near")
    other = near.ensure_queue("others")
    puts, conflicts_met = itertools.count(1), []

    def write_first():
        if next(puts) % 4:
            near.enqueue(other, [b"0"])
            conflicts_met.append(1)

    far.latency_s, far.before_put = 0.1, write_first
    with (
        by_way_of(far, monkeypatch, tmp_path / "far"),
        Supervised(address, tmp_path / "log", "--workers", "1", "--burst", target=TARGET) as supervisor,
    ):
        assert supervisor.wait(90) == 0, supervisor.said()
    assert sorted((tmp_path / "evidence").read_text().split()) == ["0", "1", "2"]
    assert len(conflicts_met) > 5
    assert "away" not in supervisor.said()
    near.close()


# Leases


@pytest.mark.slow
def test_idle_supervisors_do_not_retire_each_other(address, monkeypatch, tmp_path, proxy):
    ours, queue, supervisor, consumer = supervising(address, "ours", "here", lease_s=0.4)
    with by_way_of(proxy, monkeypatch, tmp_path / "other"):
        theirs, _, other, _ = supervising(address, "theirs", "there", lease_s=0.4)
    puts = proxy.puts
    until = time.monotonic() + 2.0  # several leases
    while time.monotonic() < until:
        for store, own in ((ours, supervisor), (theirs, other)):
            store.database.follow()
            assert store.renew_lease(own, 0.4)
            assert store.recover(5) == 0
        time.sleep(0.1)
    assert proxy.puts == puts, "an idle supervisor writes nothing"
    ours.enqueue(queue, [b"1"])
    assert len(ours.turn((), [Want(queue, consumer, 1, 5)]).taken[0].messages) == 1
    ours.close()
    theirs.close()


def test_what_a_dead_supervisor_elsewhere_held_is_taken_over(address, monkeypatch, tmp_path, proxy):
    dead, queue, _, consumer = supervising(address, "dead", "there", lease_s=0.3)
    dead.enqueue(queue, [b"1"])
    dead.turn((), [Want(queue, consumer, 1, 5)])
    with by_way_of(proxy, monkeypatch, tmp_path / "other"):
        ours, _, _, own = supervising(address, "ours", "here")
    assert ours.recover(5) == 0
    time.sleep(0.5)
    assert ours.recover(5) == 1
    assert len(ours.turn((), [Want(queue, own, 1, 5)]).taken[0].messages) == 1
    ours.close()
    dead.close()


def test_an_idle_one_that_is_known_to_be_dead_is_forgotten_at_once(address, s3_server, tmp_path):
    store, _, supervisor, _ = supervising(address, "dead")
    store.expire_lease(supervisor)
    assert store.recover(5) == 0
    assert query(s3_server, address, tmp_path, "select count(*) from pgqrs_supervisors") == [(0,)]
    assert not store.renew_lease(supervisor, 15.0)
    store.close()


@pytest.mark.slow
def test_an_idle_one_writes_its_lease_from_time_to_time(address, monkeypatch, proxy):
    from pgqrs.store.s3 import database as s3

    assert 3 * s3.IDLE_PUT_S <= conflicts.FORGOTTEN_S
    store, _, supervisor, _ = supervising(address, "idle", lease_s=0.2)
    monkeypatch.setattr(s3, "IDLE_PUT_S", 0.5)
    puts = proxy.puts
    until = time.monotonic() + 1.2
    while time.monotonic() < until:
        time.sleep(0.05)
        assert store.renew_lease(supervisor, 0.2)
    assert proxy.puts - puts == 2
    store.close()


def test_what_others_hold_is_no_reason_to_write_ones_own_lease(address, monkeypatch, proxy, tmp_path):
    idle, queue, supervisor, _ = supervising(address, "idle", "here", lease_s=1.0)
    with by_way_of(proxy, monkeypatch, tmp_path / "other"):
        busy, _, _, consumer = supervising(address, "busy", "there")
    busy.enqueue(queue, [b"1"])
    busy.turn((), [Want(queue, consumer, 1, 5)])
    time.sleep(0.7)
    idle.database.follow()
    puts = proxy.puts
    assert idle.renew_lease(supervisor, 1.0)
    assert proxy.puts == puts
    idle.close()
    busy.close()


# A cancelled call


async def cancelled_while_others_write(address, other, how, proxy):
    """S3 has the message when its task is cancelled, and somebody else's on top of it before it is taken back."""
    loop = asyncio.get_running_loop()
    sent, left = asyncio.Event(), threading.Event()

    def after_put():
        proxy.after_put = None
        loop.call_soon_threadsafe(sent.set)
        assert left.wait(10)
        other.enqueue("jobs", "theirs")

    async with pgqrs.connect(address) as store:
        await store.enqueue("jobs", "first")
        producer = await store.producer("jobs")
        proxy.after_put = after_put
        call = store.enqueue("jobs", "cancelled") if how == "store" else producer.enqueue("cancelled")
        task = asyncio.create_task(call)
        await sent.wait()
        task.cancel()
        await asyncio.sleep(0)
        left.set()
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.mark.parametrize("how", ["store", "producer"])
def test_a_cancelled_enqueue_is_taken_back_though_somebody_else_writes(
    how, address, opened, proxy, s3_server, tmp_path
):
    asyncio.run(cancelled_while_others_write(address, opened(), how, proxy))
    left = payloads(s3_server, address, tmp_path)
    assert '"cancelled"' not in left
    assert left == ['"first"', '"theirs"']
