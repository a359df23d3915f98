"""All scenarios, in the order of the table. Each module has the scenarios of one subject."""

from collections.abc import Iterator

from loadtest.bench import Bench
from loadtest.scenario import Scenario
from loadtest.scenarios import (
    cpu_bound,
    crowded,
    drains,
    embedded,
    enqueueing,
    footprint,
    growth,
    latency,
    recovery,
    workflows,
)


def scenarios(bench: Bench) -> Iterator[Scenario]:
    for subject in (
        drains,
        workflows,
        cpu_bound,
        enqueueing,
        latency,
        embedded,
        crowded,
        footprint,
        growth,
        recovery,
    ):
        yield from subject.scenarios(bench)
