"""The checks after `pgqrs demo --chaos`: compares the database with the log that the steps wrote."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from msgspec import Struct

from pgqrs.clients.handle import RunHandle
from pgqrs.demo.standard_library import Summary
from pgqrs.model.records import StepRecord
from pgqrs.model.states import WorkflowStatus


class Proof(Struct, frozen=True):
    runs: int
    steps: int
    # Runs that are not SUCCESS, or have recorded steps that are not.
    not_success: tuple[str, ...]
    # Earlier steps that started again after a later one had started.
    restarted: tuple[str, ...]
    # Recorded steps whose body never executed.
    unwitnessed: tuple[str, ...]
    # Bodies that were executed again because a kill interrupted them.
    repeated: int

    @property
    def holds(self) -> bool:
        return not (self.not_success or self.restarted or self.unwitnessed)

    def lines(self) -> list[str]:
        def verdict(wrong: tuple[str, ...]) -> str:
            return "none" if not wrong else f"{len(wrong)}: " + ", ".join(wrong[:5])

        return [
            f"database: {self.runs - len(self.not_success)} of "
            f"{self.runs} runs SUCCESS, {self.steps:,} steps recorded",
            f"runs or steps that did not succeed: {verdict(self.not_success)}",
            f"earlier steps that started again after a later one: {verdict(self.restarted)}",
            f"recorded steps whose body left no trace: {verdict(self.unwitnessed)}",
            f"steps that had to be repeated: {self.repeated} of {self.steps:,}",
        ]


def examine(handles: Iterable[RunHandle[Summary]], evidence: Path) -> Proof:
    """Compares the recorded steps of the runs with `evidence`, the log of the step bodies. The log
    has one line for each start of a body, in the order of the starts.
    """
    starts = starts_in(evidence.read_text() if evidence.exists() else "")
    not_success: list[str] = []
    restarted: list[str] = []
    unwitnessed: list[str] = []
    runs = steps = repeated = 0
    for handle in handles:
        runs += 1
        recorded = handle.steps()
        steps += len(recorded)
        if handle.status is not WorkflowStatus.Success or any(
            s.status is not WorkflowStatus.Success for s in recorded
        ):
            not_success.append(f"run {handle.id}")
        seen = starts.get(handle.id, [])
        restarted += [f"run {handle.id} {name}" for name in _out_of_order(seen, recorded)]
        unwitnessed += [f"run {handle.id} {s.step_name}" for s in recorded if s.step_name not in seen]
        repeated += sum(count - 1 for count in Counter(seen).values())
    return Proof(runs, steps, tuple(not_success), tuple(restarted), tuple(unwitnessed), repeated)


def starts_in(evidence: str) -> dict[int, list[str]]:
    """Returns the steps that each run has started, in their order. If a kill has cut a line short,
    the body of that line had done nothing yet.
    """
    starts: dict[int, list[str]] = {}
    for line in evidence.splitlines():
        if len(words := line.split(" ")) == 4:
            starts.setdefault(int(words[0]), []).append(words[1])
    return starts


def _out_of_order(seen: Iterable[str], recorded: Iterable[StepRecord]) -> list[str]:
    place = {s.step_name: s.position or 0 for s in recorded}
    wrong = []
    furthest = -1
    for name in seen:
        at = place.get(name, -1)
        if at < furthest:
            wrong.append(name)
        furthest = max(furthest, at)
    return wrong
