"""A supervisor's calls to the database apart from turns: to register, to look for dead supervisors,
and to retire.

These calls block. During startup the main thread makes them; later the Aside thread does.
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
    """A new registration. `began` is the time of its request in monotonic seconds, which is before
    the lease began.
    """

    id: int
    # Consumer id by queue id.
    consumers: dict[int, int]
    taken_back: "TakenBack"
    began: float


class TakenBack(Struct, frozen=True):
    """The result of taking messages back from dead supervisors. `count` messages were taken back.
    `locked`: more are left, because a session has locked them, for example the last transaction of
    the dead supervisor.
    """

    count: int = 0
    locked: bool = False


class Membership:
    """The registrations of one supervisor, one after another. A lost lease ends a registration, and
    `join` makes the next one.

    `queues`: the id of each queue by its name. `reclaim_s`: how long a client of 0.15 may hold a
    message; None: forever.
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
        # The id of the latest registration.
        self._id: int | None = None

    def join(self) -> Joined:
        """Registers this process. Raises SchemaError if this is not the database of the first
        registration.
        """
        if self._id is not None:
            self._make_sure_of_queues()
            # The former registration and all its workers are dead, so its lease need not be waited
            # for.
            self._store.expire_lease(self._id)
        taken_back = self._take_back()
        began = self._clock()
        self._id, consumers = self._store.register_supervisor(own_identity(), self._queues, self._lease_s)
        return Joined(self._id, {self._queues[name]: c for name, c in consumers.items()}, taken_back, began)

    def look_around(self, asked: LookAround, clock_went_back: bool) -> LookedAround:
        """Takes back the runs of dead supervisors. Also finds which of the claims `asked` another
        session has ended or taken over.
        """
        brought_back = self._store.bring_back() if clock_went_back else 0
        held: set[Claim] = set(self._store.held(asked.consumers)) if asked.claims else set()
        back = self._take_back()
        reclaimed = 0
        if self._reclaim_s is not None:
            reclaimed = administering.reclaim_overdue(self._store.database, self._reclaim_s)
        gone = [c for c in asked.claims if c not in held]
        return LookedAround(gone, back.count, reclaimed, brought_back, back.locked)

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
                    f"the database was replaced by another: queue {name!r} is not the one in it that this "
                    "supervisor knew; start the supervisor again"
                )

    def _take_back(self) -> TakenBack:
        """Takes back the runs of supervisors with an expired lease. The runs of a dead supervisor
        on this host are taken back even before its lease expires.
        """
        neighbours, is_over = self._store.watched(own_identity())
        for supervisor_id, pid, pid_started in neighbours:
            if supervisor_id != self._id and is_gone(pid, pid_started):
                self._store.expire_lease(supervisor_id)
                is_over = True
        if not is_over:
            return TakenBack()
        count = self._store.recover(self._read_ct_max)
        return TakenBack(count, self._store.has_expired())


def prepare(store: MessageStore, names: Sequence[tuple[str, str, str]]) -> list[tuple[int, int | None]]:
    """Checks the schema, and creates the row of each function's queue and workflow. On SQLite this
    may be the first write.

    `names`: kind, name and queue of each function. Returns the queue id and workflow id of each
    (None for a handler).
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
