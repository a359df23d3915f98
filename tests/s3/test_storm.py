"""Three writers of one object, while a third of all requests goes wrong in every way at once: S3 keeps what it had, and nobody is told
anything untrue. PGQRS_TEST_S3_STORM sets how many calls each makes."""

import os
import random
import threading
from collections import Counter
from pathlib import Path

import pytest

import pgqrs
from pgqrs.config import DurabilityMode
from tests.crashes.supervised import Supervised, connected
from tests.s3.faults import LOSE, PASS, REFUSE, TEAR, TEAR_DOWN, answer, late
from tests.s3.looking import payloads, query

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

TARGET = str(Path(__file__).with_name("drained.py"))
CALLS = int(os.environ.get("PGQRS_TEST_S3_STORM", "60"))
SEED = int(os.environ.get("PGQRS_TEST_SEED", "1"))
WENT_WRONG = 0.35
WENT_VERY_WRONG = 0.6  # five tries of a request fail one time in twelve
REFUSALS = [answer(500), answer(503), REFUSE]
OF_PUT = [*REFUSALS, answer(409), answer(412), TEAR, LOSE, LOSE, late(0.02), late(0.2)]
OF_READS = [*REFUSALS, TEAR_DOWN]


class Storm:
    """What each payload's writer was told of it."""

    def __init__(self, proxy, opened, tmp_path, share=WENT_WRONG):
        self.opened, self.tmp_path, self.share = opened, tmp_path, share
        self.told = {}
        self._rng = random.Random(SEED)
        self._lock = threading.Lock()
        proxy.chance = self._chance

    def _chance(self, method):
        if self._rng.random() > self.share:
            return PASS
        return self._rng.choice(OF_PUT if method == "PUT" else OF_READS)

    def tell(self, names, word):
        with self._lock:
            self.told.update(dict.fromkeys(names, word))

    def durable(self, who):
        store = None
        for n in range(CALLS):
            name = f"{who} {n}"
            try:
                store = store or self.opened()
                store.enqueue("tasks", name)
                self.tell([name], "written")
            except pgqrs.ConflictError:
                self.tell([name], "not written")
            except pgqrs.PgqrsConnectionError:
                self.tell([name], "unknown")

    def local(self, who):
        """Two writes to a sync; what met a conflict is given up with its folder."""
        machines = 0
        store, pending, unsure = None, [], False
        for n in range(CALLS):
            try:
                if store is None:
                    machines += 1
                    store = self.opened(DurabilityMode.Local, self.tmp_path / f"local {who} {machines}")
                    pending, unsure = [], False
                if not pending:
                    pgqrs.as_s3(store).snapshot()
                for part in "ab":
                    pending.append(f"{who} {n} {part}")
                    self.tell(pending[-1:], "not written")
                    store.enqueue("tasks", pending[-1])
                self.tell(pending, "unknown")
                pgqrs.as_s3(store).sync()
                self.tell(pending, "written")
                pending, unsure = [], False
            except pgqrs.ConflictError:
                # Of a sync of unknown outcome before that, nobody knows.
                self.tell(pending, "unknown" if unsure else "not written")
                store.close()
                store = None
            except pgqrs.PgqrsConnectionError:
                unsure = True


def test_in_a_storm_nothing_written_is_lost_and_nothing_untrue_is_told(
    opened, proxy, s3_server, address, tmp_path
):
    first = opened()
    first.install()
    first.queue("tasks")
    storm = Storm(proxy, opened, tmp_path)
    seen = []
    ended = []

    def run(write, who):
        try:
            write(who)
        except BaseException as e:
            ended.append(e)
            raise

    threads = [
        threading.Thread(target=run, args=(write, who))
        for write, who in ((storm.durable, "one"), (storm.durable, "other"), (storm.local, "local"))
    ]
    for t in threads:
        t.start()
    while any(t.is_alive() for t in threads):
        now = payloads(s3_server, address, tmp_path)
        assert now[: len(seen)] == seen, "each version has what was there before it"
        seen = now
        threads[0].join(0.05)
    assert not ended
    proxy.chance = None
    for t in proxy.late:
        t.join()

    found = Counter(p.strip('"') for p in payloads(s3_server, address, tmp_path))
    assert set(found.values()) == {1}, "none twice"
    told = storm.told
    assert found.keys() <= told.keys()
    assert {n for n, word in told.items() if word == "written"} <= found.keys()
    assert not {n for n, word in told.items() if word == "not written"} & found.keys()
    words = Counter(told.values())
    assert words["written"] > CALLS / 2
    print(
        f"{proxy.counts.total()} requests, {WENT_WRONG:.0%} of them wrong; {dict(words)}, {len(found)} found"
    )


def test_a_drain_in_a_storm_handles_every_message(proxy, s3_server, address, tmp_path, monkeypatch):
    """Results whose PUT failed are kept and sent again; a claim that was carried out unseen is found by its owner."""
    monkeypatch.setenv("EVIDENCE", str(tmp_path / "evidence"))
    messages = 5 * CALLS
    with connected(address) as store:
        store.enqueue_many("jobs", range(messages))
    Storm(proxy, None, tmp_path, WENT_VERY_WRONG)
    options = ("--workers", "2", "--lanes", "5", "--burst", "--quiet")
    with Supervised(address, tmp_path / "log", *options, target=TARGET) as supervisor:
        ended = supervisor.wait(1000)
    proxy.chance = None
    handled = Counter(map(int, (tmp_path / "evidence").read_text().split()))
    states = "select count(*), sum(archived_at is not null), sum(dead_reason is not null) from pgqrs_messages"
    print(f"rc {ended}; {proxy.counts}; handled more than once: {handled.total() - len(handled)}")
    assert query(s3_server, address, tmp_path, states) == [(messages, messages, 0)], supervisor.said()
    assert set(handled) == set(range(messages))
    assert ended == 0, supervisor.said()
