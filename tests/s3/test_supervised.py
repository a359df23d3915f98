"""A real supervisor on S3: how many requests it makes, how fast it is, and what is left when it is killed."""

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.crashes.supervised import Supervised, connected, eventually
from tests.s3.looking import query

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TARGET = str(Path(__file__).with_name("drained.py"))
LATENCY_S = 0.06
KILLS = int(os.environ.get("PGQRS_TEST_S3_KILLS", "8"))
MESSAGES_PER_KILL = 60
PUBLISHED = 325  # messages a second, of 0.15.3 in this scenario


@pytest.fixture
def evidence(tmp_path, monkeypatch):
    monkeypatch.setenv("EVIDENCE", str(tmp_path / "evidence"))
    return tmp_path / "evidence"


def handled(evidence):
    return Counter(map(int, evidence.read_text().split())) if evidence.exists() else Counter()


@pytest.mark.parametrize(
    "options", [("--workers", "2", "--lanes", "25"), ("--workers", "1", "--lanes", "50"), ("--workers", "2")]
)
def test_a_batch_costs_two_puts_at_most_and_the_published_rate_is_beaten(
    options, address, evidence, proxy, tmp_path, s3_server
):
    """Once in three times at the least: others may have the machine's cores meanwhile."""
    messages, batch = 500, 50
    at = []
    proxy.after_put = lambda: at.append(time.monotonic())
    for n in range(3):
        numbers = range(n * messages, (n + 1) * messages)
        proxy.latency_s = 0.0
        with connected(address) as store:
            store.enqueue_many("jobs", numbers)
        proxy.latency_s = LATENCY_S
        proxy.counts.clear()
        at.clear()
        with Supervised(address, tmp_path / "log", *options, "--burst", target=TARGET) as supervisor:
            assert supervisor.wait() == 0, supervisor.said()
        assert handled(evidence) == Counter(range(numbers.stop))
        # From before the first claim's PUT to after the last result's: the first PUT registers, the last one signs off.
        seconds = at[-2] - at[1] + LATENCY_S
        rate = messages / seconds
        print(f"{' '.join(options)}: {proxy.puts} PUTs, {messages} messages in {seconds:.2f} s: {rate:.0f}/s")
        # Registering and signing off included.
        if proxy.puts <= 2 * messages / batch and rate > PUBLISHED:
            break
    else:
        pytest.fail("too many PUTs, or too slow, three times")
    left = query(
        s3_server, address, tmp_path, "select count(*) from pgqrs_messages where archived_at is null"
    )
    assert left == [(0,)]


def test_an_idle_supervisor_puts_nothing_and_asks_once_a_second(address, evidence, proxy, tmp_path):
    with connected(address) as store:
        store.enqueue("jobs", 0)
        with Supervised(address, tmp_path / "log", "--workers", "1", target=TARGET):
            eventually(lambda: handled(evidence))
            time.sleep(0.5)
            proxy.counts.clear()
            time.sleep(5)
            assert proxy.puts == 0
            assert proxy.counts["GET"] + proxy.counts["HEAD"] <= 7
            store.enqueue("jobs", 1)
            began = time.monotonic()
            eventually(lambda: handled(evidence)[1])
            assert time.monotonic() - began < 0.5, "a process of the same machine gives a hint"


def test_a_long_step_costs_a_put_each_half_lease(address, evidence, proxy, tmp_path, monkeypatch):
    monkeypatch.setenv("TAKES_S", "6")
    with connected(address) as store:
        store.enqueue("jobs", 0)
    options = ("--workers", "1", "--lease", "4s", "--burst")
    with Supervised(address, tmp_path / "log", *options, target=TARGET) as supervisor:
        eventually(lambda: handled(evidence))
        time.sleep(0.3)
        proxy.counts.clear()
        assert supervisor.wait() == 0
    # In 6 s: two or three renewals, the result, and signing off.
    assert 3 <= proxy.puts <= 5, proxy.counts


def test_killed_at_random_moments_of_a_drain_it_loses_nothing(
    address, evidence, proxy, tmp_path, monkeypatch, s3_server
):
    monkeypatch.setenv("TAKES_S", "0.004")
    messages = KILLS * MESSAGES_PER_KILL
    with connected(address) as store:
        store.enqueue_many("jobs", range(messages))
    proxy.latency_s = 0.02
    rng = random.Random(1)
    kills = 0
    options = ("--workers", "2", "--burst", "--quiet", "--max-read-ct", "10000")
    while True:
        before = sum(handled(evidence).values())
        with Supervised(address, tmp_path / "log", *options, target=TARGET) as supervisor:
            if kills >= KILLS:
                assert supervisor.wait(120) == 0, supervisor.said()
                break
            # One in four while it starts and takes over, the others while it works.
            if kills % 4 != 3:
                eventually(
                    lambda s=supervisor, b=before: (
                        sum(handled(evidence).values()) > b or s.process.poll() is not None
                    )
                )
                time.sleep(rng.uniform(0, 0.25))
            else:
                time.sleep(rng.uniform(0, 1.0))
            supervisor.signal(signal.SIGKILL)
            supervisor.wait()
            kills += 1
    seen = handled(evidence)
    assert set(seen) == set(range(messages)), "none lost"
    rows = query(
        s3_server,
        address,
        tmp_path,
        "select count(*), sum(archived_at is not null), sum(dead_reason is not null), sum(consumer_worker_id is null and archived_at is null) "
        "from pgqrs_messages",
    )
    assert rows == [(messages, messages, 0, 0)]
    print(f"{kills} kills, {messages} messages, {sum(seen.values()) - messages} handled more than once")
