"""The records of a run, and the rule that finds the record of a call in a replay.

A call is identified by the place it is made at and by its arguments, not by the moment at which it
happens:

    path         the task that makes the call, by its way through the run's tree of tasks ("" is the
                 run's own task)
    name         the step's name
    fingerprint  a hash of the call's arguments
    k            this is the k-th call of that task with the same name and fingerprint

Concurrent branches therefore find their own results in whatever order they finish, and so does a
loop over a set in another order. If the arguments are not compared, because the step says so or
because an older version recorded no fingerprint, the call takes the first unused record of that
name in the task.

A call without a record starts its step's body. This is allowed only if every record at or before
the call's place in its task has been used. Otherwise the workflow has taken another path than the
recorded one, and continuing could repeat an action.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

from pgqrs import errors
from pgqrs.model.bounds import NAME_CHARS_MAX
from pgqrs.model.writes import Place, RecordedStep

SHOWN_CHARS_MAX = 80

_Key = tuple[str, str, int | None]


def step_of(record: str) -> str:
    """Returns the name of the step that a record's name contains: `charge` for `charge#2` and for
    `charge#branch.1/2`.
    """
    return record.partition("#")[0]


class History:
    """The records of one run. `ordered` is False for an async run, because its steps can run
    concurrently.
    """

    def __init__(self, steps: Sequence[RecordedStep], ordered: bool) -> None:
        self.steps = steps
        self.names = {s.name for s in steps}
        self._unreached = {s.name: s for s in steps}
        self._ambiguous: set[str] = set()
        self.is_of_older_version = False
        # Most runs have no records yet and skip this.
        if steps:
            self._sort(steps, ordered)

    def _sort(self, steps: Sequence[RecordedStep], ordered: bool) -> None:
        # Records with the same path, name and fingerprint, in reverse order: they are popped from the end.
        self._equal: dict[_Key, list[RecordedStep]] = {}
        # Records of one step name in one task, the first one last.
        self._named: dict[tuple[str, str], list[RecordedStep]] = {}
        # Places and names of the records of each task, the first one last.
        self._open: dict[str, list[tuple[int, str]]] = {}
        # Records without a place, by step name, the first one last.
        self._placeless: dict[str, list[RecordedStep]] = {}
        # An older version, which recorded no places, began this run. Its idempotency keys must not change.
        self.is_of_older_version = any(s.place is None for s in steps)
        placed = [(s.place or Place("", s.position), s) for s in steps if s.place is not None or ordered]
        for place, s in sorted(placed, key=lambda p: p[0].count, reverse=True):
            name = step_of(s.name)
            self._equal.setdefault((place.path, name, place.fingerprint), []).append(s)
            self._named.setdefault((place.path, name), []).append(s)
            self._open.setdefault(place.path, []).append((place.count, s.name))
        if not ordered:
            old = [s for s in steps if s.place is None]
            for s in sorted(old, key=lambda s: s.position, reverse=True):
                self._placeless.setdefault(step_of(s.name), []).append(s)

    def find(
        self, name: str, place: Place, pure: bool = False, arguments: Sequence[Any] = ()
    ) -> RecordedStep | None:
        """Returns the record of the call of step `name` at `place`. Returns None if the step's body
        is to run.

        A record with the status RETRY holds the failed attempts. Each record is returned once.
        Raises ReplayMismatchError if the body must not run. The message of this error shows
        `arguments`.
        """
        if not self._unreached and not self._ambiguous:
            return None
        found = self._match(name, place)
        if found is not None and found.place is None and not place.path and found.position != place.count:
            # An older version recorded only the order of calls, so the order must match.
            raise errors.ReplayMismatchError(self._other_step(name, place, self._at(place.count) or found))
        if found is not None:
            self._unreached.pop(found.name, None)
        elif not pure:
            self._refuse_to_skip(name, place, arguments)
        return found

    def finish(self) -> None:
        """Raises ReplayMismatchError if a recorded step was not called, although the run has ended."""
        if self._unreached:
            first = min(self._unreached.values(), key=lambda s: s.position)
            raise errors.ReplayMismatchError(
                f"the run ended without calling step {first.name!r}, which was recorded; "
                "a workflow must call the same steps in the same order on every replay"
            )

    def _match(self, name: str, place: Place) -> RecordedStep | None:
        task = place.path, name
        if place.fingerprint is None:
            found = self._next(self._named.get(task))
        else:
            found = self._next(self._equal.get((*task, place.fingerprint)))
            if found is None:
                found = self._next(self._equal.get((*task, None)))
        return found or self._match_placeless(name, place)

    def _match_placeless(self, name: str, place: Place) -> RecordedStep | None:
        """Returns a record without a place. Older versions wrote such records for async runs, and
        numbered the calls of all tasks together.
        """
        if name in self._ambiguous:
            raise errors.ReplayMismatchError(
                "this run was begun by an older version of pgqrs, which recorded "
                f"step {name!r} without the task that called it; several tasks call "
                "it now, so nobody can tell whose result it is. Trigger the run anew"
            )
        found = self._next(self._placeless.get(name))
        if found is not None and place.path:
            self._ambiguous.add(name)
        return found

    def _next(self, records: list[RecordedStep] | None) -> RecordedStep | None:
        """Returns the first record that no call has used yet."""
        while records:
            record = records.pop()
            if record.name in self._unreached:
                return record
        return None

    def _refuse_to_skip(self, name: str, place: Place, arguments: Sequence[Any]) -> None:
        waiting = self._open.get(place.path)
        while waiting and waiting[-1][1] not in self._unreached:
            waiting.pop()
        if waiting and waiting[-1][0] <= place.count:
            raise errors.ReplayMismatchError(
                self._mismatch(name, place, arguments, self._unreached[waiting[-1][1]])
            )

    def _mismatch(self, name: str, place: Place, arguments: Sequence[Any], recorded: RecordedStep) -> str:
        same_task = (
            s for s in self._unreached.values() if (s.place or Place("", s.position)).path == place.path
        )
        changed = [s for s in same_task if step_of(s.name) == name]
        if not changed:
            return self._other_step(name, place, recorded)
        then = min(changed, key=lambda s: (s.place or Place("", s.position)).count)
        return (
            f"step {place.count + 1} of {_whose(place)} is now {name!r} with the arguments "
            f"({_shown(arguments)}), fingerprint {_hex(place.fingerprint)}, but {then.name!r} was "
            "recorded with other arguments, fingerprint "
            f"{_hex(then.place.fingerprint if then.place else None)}; a workflow must call its "
            "steps with the same arguments on every replay. If an argument is meant to differ, such "
            "as a time stamp or a temporary path, declare the step with @pgqrs.step(compare=False)"
        )

    def _other_step(self, name: str, place: Place, recorded: RecordedStep) -> str:
        return (
            f"step {place.count + 1} of {_whose(place)} is now {name!r}, but {recorded.name!r} was recorded; "
            "a workflow must call the same steps in the same order on every replay"
        )

    def _at(self, position: int) -> RecordedStep | None:
        return next((s for s in self.steps if s.position == position), None)


class Names:
    """The names under which a run's calls are recorded. Each name is used once.

    Calls in the run's own task are named `charge`, `charge#2` and so on. Calls in another task are
    named `charge#branch.1/1` and so on. A replay that meets its calls in another order uses free
    numbers.
    """

    def __init__(self, taken: Iterable[str]) -> None:
        self._taken = set(taken)
        self._next: dict[tuple[str, str], int] = {}

    def new(self, name: str, path: str) -> str:
        number = self._next.get((path, name), 1)
        while (full := _numbered(name, path, number)) in self._taken:
            number += 1
        self._next[path, name] = number + 1
        return full


def _numbered(name: str, path: str, number: int) -> str:
    if not path:
        return name if number == 1 else f"{name}#{number}"
    full = f"{name}#{path}/{number}"
    return full if len(full) <= NAME_CHARS_MAX else f"{name}#{short(path)}/{number}"


def short(path: str) -> str:
    """Returns a hash that replaces a task path that is too long to store."""
    return "~" + hashlib.blake2b(path.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _whose(place: Place) -> str:
    return f"task {place.path!r}" if place.path else "this run"


def _hex(fingerprint: int | None) -> str:
    return "none" if fingerprint is None else f"{fingerprint & (2**64 - 1):016x}"


def _shown(arguments: Sequence[Any]) -> str:
    try:
        shown = ", ".join(map(repr, arguments))
    except Exception:
        return "…"
    return shown if len(shown) <= SHOWN_CHARS_MAX else shown[:SHOWN_CHARS_MAX] + "…"
