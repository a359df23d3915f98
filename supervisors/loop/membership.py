"""What a supervisor asks of its database apart from turns: to be registered, to look around, to be retired.

These are blocking calls. After the start the loop has them made by its Aside thread.
"""

from collections.abc import Callable, Mapping, Sequence

from msgspec import Struct

from pgqrs import errors
from pgqrs.model.writes import Claim
from pgqrs.store import administering
from pgqrs.store.store import MessageStore
from supervisors.core.events import LookAround, LookedAround
from supervisors.machine.identity import is_gone, own_identity


class Joined(Struct, frozen=True):
    """A new registration. `began`: when it was asked for, in monotonic seconds, which is before the lease began."""

    id: int
    consumers: dict[int, int]  # by queue
    recovered: int  # messages of dead supervisors
    began: float


class Membership:
    """One supervisor's registrations, one after another: a lost lease ends one, and `join` makes the next.

    `queues`: the id of each queue, by its name. `reclaim_s`: for how long a client of 0.15 may hold a message; None for ever.
    """

    def __init__(
        self,
        store: MessageStore,
        queues: Mapping[str, int],
        lease_s: float,
        read_ct_max: int,
        reclaim_s: float | None,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._queues = dict(queues)
        self._lease_s = lease_s
        self._read_ct_max = read_ct_max
        self._reclaim_s = reclaim_s
        self._clock = clock
        self._id: int | None = None  # of the latest registration

    def join(self) -> Joined:
        """Registers this process. Raises SchemaError if the database is not the one that the first registration was made in."""
        if self._id is not None:
            self._make_sure_of_queues()
            # The former registration is dead, and so is all that ran for it: its lease need not be waited for.
            self._store.expire_lease(self._id)
        recovered = self._take_back()
        began = self._clock()
        self._id, consumers = self._store.register_supervisor(own_identity(), self._queues, self._lease_s)
        return Joined(self._id, {self._queues[name]: c for name, c in consumers.items()}, recovered, began)

    def look_around(self, asked: LookAround, clock_went_back: bool) -> LookedAround:
        """Takes back what dead supervisors held, and finds out which of our claims another session has ended or taken over."""
        brought_back = self._store.bring_back() if clock_went_back else 0
        held: set[Claim] = set(self._store.held(asked.consumers)) if asked.claims else set()
        recovered = self._take_back()
        reclaimed = 0
        if self._reclaim_s is not None:
            reclaimed = administering.reclaim_overdue(self._store.database, self._reclaim_s)
        return LookedAround([c for c in asked.claims if c not in held], recovered, reclaimed, brought_back)

    def backlog(self, consumers: Mapping[int, int]) -> int:
        return self._store.backlog(consumers)

    def waiting_for_their_time(self, consumers: Mapping[int, int]) -> int:
        return self._store.later(consumers)

    def retire(self) -> None:
        if self._id is not None:
            self._store.retire(self._id, self._read_ct_max)

    def _make_sure_of_queues(self) -> None:
        for name, queue_id in self._queues.items():
            try:
                same = self._store.find_queue(name) == queue_id
            except errors.QueueNotFoundError:
                same = False
            if not same:
                raise errors.SchemaError(
                    f"the database was replaced by another: queue {name!r} is not the one in it that this supervisor knew; "
                    "start the supervisor again"
                )

    def _take_back(self) -> int:
        """What supervisors with an expired lease held, and at once what a dead supervisor of this host held: how many messages."""
        neighbours, is_over = self._store.watched(own_identity())
        for supervisor_id, pid, pid_started in neighbours:
            if supervisor_id != self._id and is_gone(pid, pid_started):
                self._store.expire_lease(supervisor_id)
                is_over = True
        return self._store.recover(self._read_ct_max) if is_over else 0


def prepare(store: MessageStore, names: Sequence[tuple[str, str, str]]) -> list[tuple[int, int | None]]:
    """Makes sure of the schema, and of each function's queue and workflow row. On SQLite this may be the first write.

    `names`: kind, name and queue of each function. Returns each one's queue id and workflow id (None for a handler).
    """
    if store.database.dialect == "sqlite":
        store.install()
    store.verify()
    store.refuse_incapable()
    store.bring_back()
    ids: list[tuple[int, int | None]] = []
    for kind, name, queue in names:
        if kind == "workflow":
            workflow = store.ensure_workflow(name, queue)
            ids.append((workflow.queue_id, workflow.id))
        else:
            ids.append((store.ensure_queue(queue), None))
    return ids
