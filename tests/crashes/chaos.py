"""python3 dev.py run chaos: two supervisors on PostgreSQL, whose workers and selves are killed all the while.

In turns, some time without kills and as long with them: a worker ten times a second, a supervisor every twenty seconds. What must
hold at the end: every run SUCCESS; no step's body started again once a later one of its run had (by the bodies' own log); nothing
that the supervisors hold grows. Prints what it saw, and exits with 1 where one of these does not hold.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psycopg
from msgspec import Struct

import pgqrs
from pgqrs.demo.proof import starts_in
from tests.crashes import chaos_flow
from tests.crashes.supervised import Supervised, zombies
from tests.postgres_server import PostgresServer

BACKLOG = 400
SLICES = 5  # of either kind, in turns: a machine is not equally fast all the time, nor a table equally large
KILLS_A_SECOND = 10.0
SUPERVISOR_EVERY_S = 20.0
FEED_EVERY_S = 0.1
SAMPLE_EVERY_S = 5.0
LEASE = "5s"
SETTLE_S = 60.0
# In the words of the two partial indexes: asked for together, they are counted by a look at every message there ever was, ten times a
# second, 20 ms each after 100,000 runs.
UNENDED = """
select (select count(*) from pgqrs_messages where archived_at is null and consumer_worker_id is null)
     + (select count(*) from pgqrs_messages where archived_at is null and consumer_worker_id is not null)
"""


class Sample(Struct):
    descriptors: int
    threads: int
    rss_mb: float
    zombies: int


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="dev.py run chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="with kills, and as many without (default 60)"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the result here")
    arguments = parser.parse_args()
    with PostgresServer.start(durable=True) as server, tempfile.TemporaryDirectory() as folder:
        result = Chaos(server.create_database("chaos"), Path(folder), arguments.seed).run(arguments.seconds)
    print(json.dumps(result, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if result["holds"] else 1


class Chaos:
    def __init__(self, dsn: str, folder: Path, seed: int) -> None:
        self.dsn = dsn
        self.folder = folder
        self.rng = random.Random(seed)
        self.evidence = str(folder / "evidence")
        self.sent = 0
        self.kills: Counter[str] = Counter()
        self.samples: list[Sample] = []
        self.stormy_s = 0.0
        self.next_supervisor_s = SUPERVISOR_EVERY_S / 2  # of `stormy_s`
        self.next_feed = 0.0
        self.next_sample = 0.0
        self._started = 0

    def run(self, seconds: float) -> dict[str, Any]:
        with (
            pgqrs.connect(self.dsn) as self.store,
            psycopg.connect(self.dsn, autocommit=True) as self.watching,
        ):
            self.store.install()
            self.watching.execute("set enable_seqscan = off")  # no statistics keep up with this
            self.supervisors = [self.start(), self.start()]
            try:
                self.phase(2.0, kill=False)  # to warm up
                self.samples = [self.sample()]
                slices = [
                    (
                        self.phase(seconds / SLICES, kill=False),
                        self.phase(seconds / SLICES, kill=True),
                    )
                    for _ in range(SLICES)
                ]
                left = self.settle()
                log = "".join(p.read_text() for p in self.folder.glob("*.log"))
            finally:
                for supervisor in self.supervisors:
                    supervisor.__exit__()
        return self.judged(seconds, slices, left, log)

    def start(self) -> Supervised:
        self._started += 1
        log = self.folder / f"{self._started}.log"
        return Supervised(
            self.dsn, log, "--workers", "2", "--lease", LEASE, "--quiet", target=chaos_flow.__file__
        )

    def phase(self, seconds: float, kill: bool) -> int:
        """How many runs ended meanwhile."""
        began = time.monotonic()
        before = self.done()
        next_kill = began
        while (now := time.monotonic()) < began + seconds:
            if now >= self.next_feed:
                self.next_feed = now + FEED_EVERY_S
                self.feed()
            if kill and now >= next_kill:
                next_kill += 1.0 / KILLS_A_SECOND
                self.kill_a_worker()
            if kill and self.stormy_s + now - began >= self.next_supervisor_s:
                self.next_supervisor_s += SUPERVISOR_EVERY_S
                self.kill_a_supervisor()
            if now >= self.next_sample:
                self.next_sample = now + SAMPLE_EVERY_S
                self.samples.append(self.sample())
            time.sleep(0.02)
        if kill:
            self.stormy_s += seconds
        return self.done() - before

    def feed(self) -> None:
        missing = BACKLOG - (self.sent - self.done())
        if missing > BACKLOG // 4:
            self.store.trigger_many(chaos_flow.three_steps, [((self.evidence,), {})] * missing)
            self.sent += missing

    def done(self) -> int:
        """By what is not, which is few, however long this goes on."""
        row = self.watching.execute(UNENDED).fetchone()
        assert row is not None
        return self.sent - int(row[0])

    def kill_a_worker(self) -> None:
        """Whoever is looked at costs CPU that the steps of a storm then miss: the second one only where the first has none."""
        for supervisor in self.rng.sample(self.supervisors, len(self.supervisors)):
            if workers := supervisor.workers():
                self.signal(self.rng.choice(workers), "worker")
                return

    def kill_a_supervisor(self) -> None:
        n = self.rng.randrange(len(self.supervisors))
        self.signal(self.supervisors[n].pid, "supervisor")
        self.supervisors[n].process.wait()
        self.supervisors[n] = self.start()

    def signal(self, pid: int, kind: str) -> None:
        try:
            os.kill(pid, signal.SIGKILL)
            self.kills[kind] += 1
        except ProcessLookupError:
            pass

    def sample(self) -> Sample:
        found = Sample(0, 0, 0.0, 0)
        for supervisor in self.supervisors:
            proc = Path(f"/proc/{supervisor.pid}")
            try:
                status = dict(
                    line.split(":\t", 1)
                    for line in (proc / "status").read_text().splitlines()
                    if ":\t" in line
                )
                found.descriptors = max(found.descriptors, len(list((proc / "fd").iterdir())))
            except OSError:
                continue
            found.threads = max(found.threads, int(status["Threads"]))
            found.rss_mb = max(found.rss_mb, int(status["VmRSS"].split()[0]) / 1024)
            found.zombies += zombies(supervisor.pid)
        return found

    def settle(self) -> int:
        """What has not ended after a while without kills."""
        deadline = time.monotonic() + SETTLE_S
        while (left := self.sent - self.done()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return left

    def judged(self, seconds: float, slices: list[tuple[int, int]], left: int, log: str) -> dict[str, Any]:
        calm, stormy = (sum(side) for side in zip(*slices, strict=True))
        with psycopg.connect(self.dsn) as connection:
            statuses = dict(
                connection.execute(
                    "select cast(status as text), count(*) from pgqrs_workflow_runs group by 1"
                ).fetchall()
            )
        told = Told.by(Path(self.evidence).read_text())
        first, last = self.samples[0], self.samples[-1]
        grown = {
            "descriptors": [first.descriptors, last.descriptors],
            "threads": [first.threads, last.threads],
            "rss_mb": [round(first.rss_mb, 1), round(last.rss_mb, 1)],
            "zombies": [first.zombies, last.zombies],
        }
        flat = (
            last.descriptors <= first.descriptors + 5
            and last.threads <= first.threads + 1
            and last.rss_mb <= first.rss_mb * 1.2 + 5
            and last.zombies <= 2
        )
        holds = (
            not left
            and statuses == {"SUCCESS": self.sent}
            and not told.repeated
            and told.torn <= self.kills["worker"] + 2 * self.kills["supervisor"]  # whose workers go with it
            and flat
            and "Traceback" not in log
        )
        return {
            "holds": holds,
            "seconds": seconds,
            "runs": self.sent,
            "statuses": statuses,
            "bodies": told.starts,
            "lines torn by kills": told.torn,
            "kills": dict(self.kills),
            "steps repeated after a later one": told.repeated,
            "runs a second without kills": round(calm / seconds, 1),
            "runs a second with kills": round(stormy / seconds, 1),
            "ratio": round(stormy / max(1, calm), 3),
            "by slice, without and with": slices,
            "first and last sample": grown,
            "flat": flat,
        }


class Told(Struct, frozen=True):
    """By the bodies' own log."""

    starts: int
    repeated: int  # after a later one of their run
    torn: int  # lines that a kill cut short

    @classmethod
    def by(cls, evidence: str) -> "Told":
        starts = repeated = 0
        for steps in starts_in(evidence).values():
            furthest = 0
            for step in map(int, steps):
                starts += 1
                repeated += step < furthest
                furthest = max(furthest, step)
        return cls(starts, repeated, sum(map(bool, evidence.splitlines())) - starts)


if __name__ == "__main__":
    sys.exit(main())
