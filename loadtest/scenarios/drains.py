"""Draining a backlog of messages: of no-ops beside raw loops and peers, and of large payloads."""

from collections.abc import Iterator

from loadtest import others, raw
from loadtest.bench import Bench, consumer_of_only_queue, noops
from loadtest.scenario import Aim, Measure, Scenario

# The fewest jobs. Fewer would be done before every process has some.
LEAST = 500
RAW = "raw claim and archive, batch 100"


def scenarios(bench: Bench) -> Iterator[Scenario]:
    yield _noops(bench)
    for size, count in ((1_000, 20_000), (64_000, 2_000), (1_000_000, 100)):
        yield _payloads(bench, size, bench.count(count))


def _noops(bench: Bench) -> Scenario:
    n = bench.count(50_000)
    name = f"drain of {n:,} no-op messages, 2 workers"

    def ours() -> float:
        return bench.rate(bench.filled(noops(n)), "noops.py:noop", n)

    def raw_loop() -> float:
        dsn = bench.filled(noops(n))
        return n / raw.claim_and_archive(dsn, consumer_of_only_queue(dsn))

    sides: dict[str, Measure] = {"pgqrs": ours, RAW: raw_loop}
    aims = {RAW: Aim(ratio=0.5)}
    if bench.peers:
        for peer in others.ALL:
            sides[peer.label("noop")] = peer_rate(bench, peer, "noop", n)
        aims[others.PGQUEUER.label("noop")] = Aim(ratio=1.0)
    return Scenario(name, "messages/s", "more", sides, aims, chart="drain")


def peer_rate(bench: Bench, peer: others.Peer, work: others.Work, full: int) -> Measure:
    n = max(LEAST, round(full * peer.setting(work).share))
    return lambda: n / others.drain(peer, "" if peer.redis else bench.postgres(), n, work)


def _payloads(bench: Bench, size: int, n: int) -> Scenario:
    name = f"drain of {n:,} messages of {size // 1000:,} KB"
    # Below the limit, including the two quotes.
    payloads = ["x" * (size - 2)] * n

    def filled() -> str:
        return bench.filled(lambda store: store.enqueue_many("sized", payloads))

    def raw_loop() -> float:
        dsn = filled()
        return n / raw.claim_and_archive(dsn, consumer_of_only_queue(dsn), payloads=True)

    beside = "raw claim and archive, payloads fetched"
    sides: dict[str, Measure] = {
        "pgqrs": lambda: bench.rate(filled(), "noops.py:sized", n),
        beside: raw_loop,
    }
    return Scenario(name, "messages/s", "more", sides, chart="payloads")
