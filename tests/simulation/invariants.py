"""The invariants that hold after every event, whatever fails. Judged from outside: by the tables,
and by what step bodies wrote down.
"""

import json
from typing import Any

from msgspec import Struct

from pgqrs.model.maps import read
from pgqrs.model.states import RUN_TRANSITIONS, WorkflowStatus
from pgqrs.model.writes import Outcome, Write
from supervisors.core.endings import CRASHES_MAX

MESSAGES = """
select m.id, m.consumer_worker_id, m.claim_no, m.read_ct, m.archived_at, f.id
from pgqrs_messages m left join pgqrs_workflows f on f.queue_id = m.queue_id where m.id = ?
"""
STEPS = """
select w.message_id, s.step_name, s.status, s.output, s.error
from pgqrs_workflow_steps s join pgqrs_workflow_runs w on w.id = s.run_id where s.rowid = ?
"""
RUNS = "select message_id, status, output, crash_count from pgqrs_workflow_runs where id = ?"
OUTCOMES = "select map_id, first, count, took, data from pgqrs_map_outcomes where rowid = ?"
TABLES = {
    "pgqrs_messages": MESSAGES,
    "pgqrs_workflow_steps": STEPS,
    "pgqrs_workflow_runs": RUNS,
    "pgqrs_map_outcomes": OUTCOMES,
}


class Violation(Exception):
    """An invariant does not hold: its name, and how that shows."""


class Body(Struct, frozen=True):
    """A step's body started: in which supervisor, and whether its claim was live then."""

    message: int
    position: int
    supervisor: str
    live: bool


class Watch:
    """Reads the tables after each transaction and remembers what may never change."""

    def __init__(self, connection: Any, read_ct_max: int) -> None:
        self._connection = connection
        self._read_ct_max = read_ct_max
        self.bodies: list[Body] = []
        # The deaths of workers while the run was on their CPU.
        self.deaths: dict[int, int] = {}
        self.cancelled: set[int] = set()
        self.clock_jumped = False
        self._recorded: dict[tuple[int, str], tuple[str, Any, Any]] = {}
        self._ended: dict[int, tuple[str, Any]] = {}
        self._status: dict[int, str] = {}
        self._archived: dict[int, Any] = {}
        self._claim: dict[int, tuple[int | None, int]] = {}
        self._furthest: dict[int, int] = {}
        self._written: dict[str, set[int]] = {}
        self._seen: dict[str, dict[int, Any]] = {}
        # The items that have an outcome, by map.
        self._items: dict[int, set[int]] = {}
        for table in TABLES:
            self._follow(table)

    def _follow(self, table: str) -> None:
        """Notes the number of every row that is written, by whatever connection. Reading all rows
        after each event would take as long as the event.
        """
        self._written[table], self._seen[table] = set(), {}
        self._connection.create_function(f"written_{table}", 1, self._written[table].add)
        for what in ("insert", "update"):
            self._connection.execute(
                f"create temp trigger {table}_{what} after {what} on main.{table} "
                f"begin select written_{table}(new.rowid); end"
            )

    # What step bodies wrote down

    def body_started(
        self, message: int, position: int, supervisor: str, live: bool, is_workflow: bool
    ) -> None:
        self.bodies.append(Body(message, position, supervisor, live))
        if is_workflow and (live or not self.clock_jumped) and self._furthest.get(message, -1) > position:
            raise Violation(
                f"step-repeated: body {position} of run {message} starts on {supervisor} after body {self._furthest[message]} had"
            )
        if live:
            self._furthest[message] = max(position, self._furthest.get(message, -1))

    def died_on_cpu(self, message: int) -> None:
        self.deaths[message] = self.deaths.get(message, 0) + 1

    def item_started(self, map_id: int, item: int) -> None:
        if item in self._items.get(map_id, ()):
            raise Violation(f"item-repeated: item {item} of map {map_id} starts although it has an outcome")

    # What the tables say

    def holder(self, message: int) -> tuple[int | None, int, bool]:
        row = self._connection.execute(
            "select consumer_worker_id, claim_no, archived_at is not null from pgqrs_messages where id = ?",
            (message,),
        ).fetchone()
        return row[0], row[1], bool(row[2])

    def turned(
        self, before: dict[int, tuple[int | None, int, bool]], outcomes: list[Outcome], unsure: bool
    ) -> None:
        for outcome in outcomes:
            claim = outcome.write.claim
            consumer, claim_no, archived = before[claim.message_id]
            live = not archived and (consumer, claim_no) == (claim.consumer_id, claim.claim_no)
            seen_before = unsure and archived and (consumer, claim_no) == (claim.consumer_id, claim.claim_no)
            if outcome.applied and not (live or seen_before):
                raise Violation(
                    f"stale-write: {_shown(outcome.write)} was applied, but the message is held by {consumer} under {claim_no}"
                )
            if (live or seen_before) and not outcome.applied and outcome.failure is None:
                raise Violation(
                    f"lost-write: {_shown(outcome.write)} was not applied, though its claim is live, or ended it"
                )
        self.look()

    def look(self) -> None:
        for message, consumer, claim_no, read_ct, archived, workflow in self._new("pgqrs_messages"):
            holder, number = self._claim.get(message, (None, 0))
            if consumer is not None:
                if (claim_no <= number) if consumer != holder else (claim_no < number):
                    raise Violation(
                        f"claim-number: message {message} went from {holder} to {consumer}, its number from {number} to {claim_no}"
                    )
                self._claim[message] = (consumer, claim_no)
            if read_ct > self._read_ct_max and workflow is None:
                raise Violation(f"read-budget: message {message} was delivered {read_ct} times")
            if message in self._archived and archived != self._archived[message]:
                raise Violation(f"archived-changed: message {message} was archived, and is no more or anew")
            if archived is not None:
                self._archived[message] = archived
        for message, name, status, output, error in self._new("pgqrs_workflow_steps"):
            key = (message, name)
            if key in self._recorded and self._recorded[key] != (status, output, error):
                raise Violation(
                    f"checkpoint-changed: {name} of run {message} was {self._recorded[key]}, is {(status, output, error)}"
                )
            if status == "SUCCESS":
                self._recorded[key] = (status, output, error)
        for message, status, output, crash_count in self._new("pgqrs_workflow_runs"):
            if crash_count > min(CRASHES_MAX, self.deaths.get(message, 0)):
                raise Violation(
                    f"crash-budget: run {message} is charged {crash_count} crashes, of {self.deaths.get(message, 0)} "
                    f"deaths while it had the CPU, and {CRASHES_MAX} at most"
                )
            before, self._status[message] = self._status.get(message, "QUEUED"), status
            if status != before and status not in _reached(before):
                raise Violation(f"status-changed: run {message} was {before}, is {status}")
            if message in self._ended and self._ended[message] != (status, output):
                raise Violation(
                    f"end-changed: run {message} was {self._ended[message]}, is {(status, output)}"
                )
            if status in ("SUCCESS", "ERROR", "CANCELLED"):
                self._ended[message] = (status, output)
            if status == "SUCCESS" and json.loads(output) != (recorded := self._outputs(message)):
                raise Violation(
                    f"result-mismatch: run {message} returned {output}, its steps are recorded as {recorded}"
                )

        for map_id, first, count, took, data in self._new("pgqrs_map_outcomes"):
            self._record_items(map_id, first, count, took, data)

    def _record_items(self, map_id: int, first: int, count: int, took: str, data: str) -> None:
        items = self._items.setdefault(map_id, set())
        lines = list(read(first, took, data))
        assert len(lines) == count
        for line in lines:
            if line.item in items:
                raise Violation(f"item-twice: item {line.item} of map {map_id} has two outcomes")
            items.add(line.item)
            told = json.loads(line.value)
            if line.failed:
                fits = told["code"] == "CRASHED" or told["message"] == f"bad {map_id}.{line.item}"
            else:
                fits = told.startswith(f"{map_id}.{line.item}.")
            if not fits:
                raise Violation(f"item-misplaced: the outcome of item {line.item} of map {map_id} is {told}")

    def _new(self, table: str) -> list[Any]:
        """Returns the rows that have changed since the last look."""
        written, seen, new = self._written[table], self._seen[table], []
        if not written:
            return []
        for number in written:
            row = self._connection.execute(TABLES[table], (number,)).fetchone()
            if row is not None and row != seen.get(number):
                seen[number] = row
                new.append(row)
        written.clear()
        return sorted(new, key=repr)

    def _outputs(self, message: int) -> dict[str, Any]:
        """The recorded outputs by step. A pause has none."""
        recorded = ((name, output) for (m, name), (_, output, _) in self._recorded.items() if m == message)
        return {name: json.loads(output) for name, output in recorded if output is not None}

    # At the end

    def everything_ended(self) -> None:
        rows = list(
            self._connection.execute(
                "select m.id, m.consumer_worker_id, m.vt, m.read_ct, w.status from pgqrs_messages m "
                "left join pgqrs_workflow_runs w on w.message_id = m.id where m.archived_at is null"
            )
        )
        if rows:
            raise Violation(f"not-ended: (message, holder, vt, read_ct, run) {rows}")
        rows = list(
            self._connection.execute(
                "select w.message_id, w.status, m.dead_reason from pgqrs_workflow_runs w join pgqrs_messages m "
                "on m.id = w.message_id where w.status not in ('SUCCESS', 'ERROR', 'CANCELLED') "
                "or (w.status = 'ERROR') <> (m.dead_reason is not null)"
            )
        )
        if rows:
            raise Violation(f"ended-oddly: (message, run, dead reason) {rows}")

    def every_item_ended(self, maps: dict[int, int]) -> None:
        """`maps`: the number of items of each map."""
        for map_id, count in maps.items():
            if missing := set(range(count)) - self._items.get(map_id, set()):
                raise Violation(f"item-lost: items {sorted(missing)} of map {map_id} have no outcome")
            [(counted,)] = self._connection.execute(
                "select coalesce(sum(done + failed), 0) from pgqrs_map_parts where map_id = ?", (map_id,)
            )
            if counted != count:
                raise Violation(f"item-miscounted: map {map_id} has {count} items, and counts {counted}")

    def handled_once_at_least(self, plain: set[int]) -> None:
        started = {b.message for b in self.bodies}
        done = {
            i
            for (i,) in self._connection.execute(
                "select id from pgqrs_messages where archived_at is not null and dead_reason is null"
            )
        }
        if missing := (plain & done) - started - self.cancelled:
            raise Violation(
                f"never-handled: messages {sorted(missing)} are archived as done, and no body ever started"
            )


def _reached(status: str) -> set[str]:
    """The statuses that a run may have after one transaction, which may change its status more than
    once. Nobody replays a run here, so nothing follows an end.
    """
    reached, waiting = set[str](), [WorkflowStatus(status)]
    while waiting:
        now = waiting.pop()
        for then in RUN_TRANSITIONS[now] if not now.terminal else ():
            if then.value not in reached:
                reached.add(then.value)
                waiting.append(then)
    return reached


def _shown(write: Write) -> str:
    parts = [k for k in ("begin", "step", "crash", "settle", "message") if getattr(write, k) is not None]
    c = write.claim
    return f"{'+'.join(parts)} for message {c.message_id} under ({c.consumer_id}, {c.claim_no})"
