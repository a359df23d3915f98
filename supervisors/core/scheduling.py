"""Decides which run goes to which worker, and how many messages to claim. Part of the core: this
module only decides.
"""

import math
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from heapq import heappop, heappush
from itertools import takewhile

from pgqrs.model.turns import Taken, Want
from pgqrs.model.writes import RecordedStep
from supervisors import wire
from supervisors.core import ranges
from supervisors.core.events import Command, Kind, Recall, Send
from supervisors.core.state import POLL_MIN_S, Function, Queue, Run, Settings, WantedBack, Worker
from supervisors.core.states import RunState, WorkerState

# The most messages in one claim. Larger claims were no faster when measured.
CLAIM_MAX = 256
LANES_MIN, LANES_MAX = 2, 256
# A worker gets one run at a time from a queue whose steps take this long, and until the first step
# of a queue has ended. This supervisor could take back a run queued in the worker, but an idle
# worker of another supervisor could not get it. And the wait for the next run, some ten
# milliseconds, is short compared with such a step.
LONG_STEP_S = 0.5
# Payloads and histories at one worker. A worker with more gets no further run.
LANES_BYTES_MAX = 8 * 1024 * 1024
ASYNC_LANES = 100
HISTORY_CHUNK_BYTES = 4 * 1024 * 1024
REBALANCE_S = 0.05
LAPSED_EVERY_S = 1.0
# While there is a backlog, how often a claim looks first for messages that were claimed before and
# are due again. That costs one more statement.
AGAIN_EVERY_S = 0.1
# The limit of payloads and histories in one claim, by the average of the queue's messages. All of
# them are in memory at once.
CLAIM_BYTES_MAX = 64 * 1024 * 1024
# With more queues than this, lanes are not counted again after every event, and a hint that names
# no queue is followed by a look before any claim.
QUEUES_FEW = 16
# The longest wait for a new worker. A fork takes milliseconds, a spawn a fraction of a second.
COMES_S = 1.0
# Work given to one worker in a row. Many tiny steps then share a frame and one wake-up of the
# worker.
ROW_S = 0.001
# The least work that is moved to an idle worker: more than the move costs both workers.
WORTH_S = 0.002
# The ranges of a map that a worker has at hand: the one that it executes, and the next one.
RANGES = 2
# How long a message that was committed late, behind the watermark, may be overlooked.
FULL_SCAN_S = 1.0


class Scheduling:
    """Works on the queues and workers of the core, and changes them. Appends its commands to
    `orders`.
    """

    def __init__(
        self,
        settings: Settings,
        kinds: Mapping[Kind, int],
        queues: Mapping[int, Queue],
        workers: Mapping[int, Worker],
        orders: list[Command],
    ) -> None:
        # Claimed runs that no worker has.
        self.waiting: deque[Run] = deque()
        self._settings = settings
        self._kinds = kinds
        self._queues = queues
        self._workers = workers
        self._orders = orders
        # The worker that got the last run.
        self._last: Worker | None = None
        # The rest of the work that this worker gets in a row.
        self._row_s = 0.0
        self._waiting_functions: set[str] = set()
        # The demand found by `claim`, if `claim` has ordered nothing since.
        self._asked: int | None = None
        # The messages that all claims under way ask for.
        self.wanted = 0
        # When each queue may be claimed from, the earliest first: (time, entry, queue). A heap,
        # because no event may walk over a thousand queues. An entry is outdated once its queue has
        # a newer one or a claim under way.
        self._due: list[tuple[float, int, Queue]] = []
        self._entries = 0
        # The most lanes of any queue of a kind. With few queues the lanes are counted when needed;
        # with many they are kept up to date.
        self._few = len(queues) <= QUEUES_FEW
        self._lanes: dict[Kind, dict[int, int]] = {kind: {} for kind in kinds}
        for q in queues.values():
            self._lanes[_kind(q)][q.function.queue_id] = self.lanes(q.function)
        self._most = {kind: max(lanes.values(), default=0) for kind, lanes in self._lanes.items()}

    @property
    def commit_every_s(self) -> float:
        """Returns how long a write that no worker waits for may wait for other writes: half of the
        time that workers need for the runs that they hold.
        """
        return self._settings.commit_hide_s / 2

    def dispatch(self, now: float) -> None:
        """Sends waiting runs to workers. A run goes to the worker with the fewest runs, but several
        tiny runs in a row go to one worker. A run that has killed a worker gets a worker to itself.
        """
        self._asked = self._last = None
        self._find_waiting_functions()
        for worker in self._workers.values():
            worker.stands = worker.gated and self._is_long(worker, now)
            if worker.exclusive and not any(r.isolated for r in worker.runs.values()):
                worker.exclusive = False
        # No isolated run waits any more: it may have been cancelled meanwhile.
        if not any(r.isolated for r in self.waiting):
            self._open_all()
        if not self.waiting:
            return
        put_back: list[Run] = []
        # A message never runs in two workers. Another worker may still have to leave it, or may be
        # dying with it.
        elsewhere = {i for w in self._workers.values() for i in (*w.leaving, *w.left)}
        while self.waiting:
            run = self.waiting.popleft()
            held = run.id in elsewhere or (
                not run.begun and self._holds_back(self._queues[run.function.queue_id])
            )
            host = None if held else self._host(run, now)
            if host is None:
                put_back.append(run)
                if len(put_back) >= len(self._kinds) + LANES_MAX:
                    break
            else:
                self._execute(host, run, now)
        self.waiting.extendleft(reversed(put_back))

    def _holds_back(self, queue: Queue) -> bool:
        """Whether new runs of the queue must wait. If as many of its runs wait for other runs as
        there should be workers, the awaited runs come first.
        """
        return queue.function.name in self._waiting_functions

    def _find_waiting_functions(self) -> None:
        counts, awaited = Counter[str](), set[str]()
        for worker in self._workers.values():
            if worker.blocked or worker.waits >= ASYNC_LANES:
                for run in worker.runs.values():
                    if run.waits_for is not None:
                        counts[run.function.name] += 1
                        awaited.add(run.waits_for.workflow)
        most = {f.name: ASYNC_LANES if f.is_async else self._settings.workers for f in self._functions()}
        self._waiting_functions = {name for name, n in counts.items() if n >= most[name]} - awaited

    def _functions(self) -> Iterator[Function]:
        return (q.function for q in self._queues.values())

    def _host(self, run: Run, now: float) -> Worker | None:
        if run.isolated:
            able = [w for w in self._workers.values() if w.kind == "sync" and _able(w)]
            empty = [w for w in able if not w.runs and run.id not in w.recalled]
            if empty:
                self._open_all()
                empty[0].exclusive = True
                return empty[0]
            if able and not any(w.reserved for w in able) and not self._one_comes(now):
                fewest = min(able, key=lambda w: len(w.runs))
                fewest.reserved = True
                self._revoke(fewest, len(fewest.runs))
            return None
        kind: Kind = "async" if run.function.is_async else "sync"
        queue, lanes = self._queues[run.function.queue_id], self.lanes(run.function)
        last, step_s = self._last, queue.step_s
        if (
            last
            and self._row_s >= step_s
            and last.kind == kind
            and _open(last)
            and run.id not in last.recalled
            and self._free(last, lanes, queue)
        ):
            self._row_s -= step_s
            return last
        emptiest, least = None, math.inf
        for w in self._workers.values():
            # A worker in a long step reads nothing until the step ends, not even that a run is
            # taken back.
            burden = len(w.runs) + (LANES_MAX if self._is_long(w, now) else 0)
            if run.id in w.recalled:
                # The worker has not yet read that the run was recalled.
                continue
            if burden < least and w.kind == kind and _open(w) and self._free(w, lanes, queue):
                emptiest, least = w, burden
        self._last, self._row_s = emptiest, ROW_S - step_s
        return emptiest

    def _is_long(self, worker: Worker, now: float) -> bool:
        """Whether the worker has been in one step for longer than all of its runs together should
        take, or in code that should have ended.
        """
        since = math.inf if worker.on_cpu is None else worker.on_cpu.since
        if worker.left and worker.kind == "sync":
            since = min(since, *worker.left.values())
        return now - since > self._settings.commit_hide_s

    def _open_all(self) -> None:
        """Stops draining workers for an isolated run. If another isolated run needs a worker, a
        worker is drained again.
        """
        for worker in self._workers.values():
            worker.reserved = False

    def go_on(self, run: Run) -> None:
        """Puts the run back into the waiting runs, before runs that have not begun and after
        isolated runs.
        """
        run.become(RunState.WAITING)
        ahead = 0 if run.isolated else sum(1 for _ in takewhile(lambda r: r.isolated, self.waiting))
        self.waiting.insert(ahead, run)

    def _one_comes(self, now: float) -> bool:
        """Whether a new worker is starting. It will be empty sooner than a busy worker."""
        return any(
            w.kind == "sync" and w.state is WorkerState.STARTING and now - w.launched_at < COMES_S
            for w in self._workers.values()
        )

    def _execute(self, worker: Worker, run: Run, now: float) -> None:
        assert worker.ready, "a worker that is told to end is given nothing"
        assert not run.unsaved or run.is_range, "a run goes on from what is durable"
        history = run.history()
        run.bytes = len(run.claimed.payload) + sum(map(_size, history))
        worker.take(run)
        worker.given += 1
        worker.given_at = now
        run.worker = worker.id
        run.become(RunState.SENT)
        for chunk in _chunks(history):
            self._orders.append(Send(worker.id, wire.History(run.id, chunk)))
        c = run.claimed
        attempt = c.attempt + 1 if run.function.workflow_id is not None else c.read_ct
        left = run.function.timeout_s if run.deadline is None else max(0.0, run.deadline - now)
        end = run.end if run.is_range else None
        frame = wire.Execute(
            run.id,
            run.claim.claim_no,
            run.function.name,
            run.function.kind,
            c.payload,
            attempt,
            (),
            left,
            end,
        )
        self._orders.append(Send(worker.id, frame))

    def balance(self, now: float) -> None:
        """Moves the runs behind a long step to other workers. Also gives an idle worker half of the
        runs that another worker has not begun.
        """
        sync = [w for w in self._workers.values() if w.kind == "sync" and w.ready]
        if len(sync) < 2 or not any(w.runs for w in sync):
            return
        able = [
            w for w in sync if not w.revoking and w.wanted_back is None and now - w.revoked_at >= REBALANCE_S
        ]
        takers = [w for w in sync if _open(w)]
        for worker in able:
            if worker.stands and len(worker.runs) > 1 and any(w is not worker for w in takers):
                self._revoke(worker, len(worker.runs), begun=True)
        if self.waiting:
            return
        for idle in takers:
            if idle.runs:
                continue
            rich = [(self._behind(w, now), w) for w in able if w.wanted_back is None]
            count, richest = max(rich, key=lambda c: c[0], default=(0, idle))
            if count:
                self._revoke(richest, (count + 1) // 2)
                if not richest.gated:
                    richest.revoked_at = now
            elif (in_range := self._to_cut(able)) is not None:
                in_range.wanted_back = WantedBack(0, cut=True)
                self._orders.append(Recall(in_range.id))

    def _to_cut(self, able: Sequence[Worker]) -> Worker | None:
        """Returns the worker with the most work left in the range of a map that it is in, if that is
        worth moving and nothing of the map waits in its queue.
        """
        most, found = 0.0, None
        for worker in able:
            if worker.wanted_back is not None or not worker.gated:
                continue
            for run in worker.runs.values():
                queue = self._queues[run.function.queue_id]
                if not run.is_range or not run.started or queue.backlog or queue.wanted:
                    continue
                left = ranges.left_of(run)
                work_s = left * queue.step_s
                if work_s > most and (work_s >= WORTH_S or worker.stands):
                    most, found = work_s, worker
        return found

    def _behind(self, worker: Worker, now: float) -> int:
        """Returns how many of the worker's runs are worth moving. The run that the worker is about
        to begin is not counted. If the worker could finish all these runs before another worker
        could begin one, the result is 0, until they have waited for REBALANCE_S.
        """
        fresh = [r for r in worker.runs.values() if not r.started]
        if not fresh:
            return 0
        if not worker.gated:
            return len(fresh)
        if worker.on_cpu is None or worker.on_cpu.run == fresh[0].id:
            fresh.pop()
        work_s = sum(self._queues[r.function.queue_id].step_s for r in fresh)
        return len(fresh) if work_s >= WORTH_S or now - worker.given_at >= REBALANCE_S else 0

    def revoke(self, worker: Worker, begun: bool = False) -> None:
        """Takes back all runs that the worker has not begun. With `begun`, and if the worker has a
        gate, also takes back the runs that wait in the worker for a commit.
        """
        if worker.runs and worker.killing is None:
            self._revoke(worker, len(worker.runs), begun)

    def _revoke(self, worker: Worker, count: int, begun: bool = False) -> None:
        """Takes back up to `count` runs, the last sent first. A worker without a gate is asked for
        them, and answers when it next reads its pipe.
        """
        if worker.gated:
            asked = worker.wanted_back
            worker.wanted_back = WantedBack(count, begun or (asked is not None and asked.begun))
            if asked is None:
                self._orders.append(Recall(worker.id))
            return
        worker.revoking = True
        self._orders.append(Send(worker.id, wire.Revoke(count)))

    # Claims

    def wake(self, queue: Queue, at: float) -> None:
        """Sets the time from which the queue may be claimed. Every change of `next_claim_at` calls
        this. So does every event after which a claim is possible again.
        """
        listed = queue.listed and queue.next_claim_at == at
        queue.next_claim_at = at
        if not listed and queue.consumer_id is not None and not queue.wanted:
            self._list(queue)

    def _list(self, queue: Queue) -> None:
        self._entries += 1
        queue.listed = self._entries
        heappush(self._due, (queue.next_claim_at, queue.listed, queue))

    def _unlist_first(self) -> Queue | None:
        """Removes the first entry from the heap of due queues. Returns its queue, or None if the
        entry is outdated.
        """
        _, entry, queue = heappop(self._due)
        stands = self._stands(entry, queue)
        if entry == queue.listed:
            queue.listed = 0
        return queue if stands else None

    def _stands(self, entry: int, queue: Queue) -> bool:
        return entry == queue.listed and not queue.wanted and queue.consumer_id is not None

    def hint(self, queue: Queue, now: float, surely: bool) -> None:
        """Records that the queue may have new messages. Without `surely`, the hint did not name
        this queue, and a look comes before a claim.
        """
        queue.hinted = queue.wanting
        queue.poll_s = POLL_MIN_S if surely else self._settings.poll_max_s
        self.wake(queue, min(queue.next_claim_at, now))

    def answered(self, queue: Queue) -> None:
        """Records that the claim or the look of the queue has been answered."""
        if not queue.looking:
            self.wanted -= queue.wanted
        queue.wanted, queue.looking = 0, False

    def taken(self, event: Taken, now: float) -> Queue:
        """Handles the answer to a claim or to a look. Returns its queue."""
        queue = self._queues[event.want.queue_id]
        self.answered(queue)
        if event.ready:
            queue.poll_s, queue.hinted = POLL_MIN_S, False
            self.wake(queue, now)
            return queue
        assert len(event.messages) <= event.want.limit, "a claim takes no more than was asked for"
        whole = queue.after is None
        queue.backlog = len(event.messages) >= event.want.limit
        if queue.backlog:
            queue.after, queue.empty = event.after, False
            next_claim_at = now
            if whole:
                queue.full_scan_at = now + FULL_SCAN_S
            if now >= queue.full_scan_at:
                queue.after = None
        else:
            queue.after = None
            queue.empty = queue.lapsed and not event.messages
            queue.poll_s = POLL_MIN_S if event.messages else min(queue.poll_s * 2, self._settings.poll_max_s)
            next_claim_at = now if queue.hinted or not whole else now + queue.poll_s
        queue.hinted = False
        self.wake(queue, next_claim_at)
        if event.messages:
            total = sum(len(m.payload) + sum(len(s.output or b"") for s in m.steps) for m in event.messages)
            queue.message_bytes += 0.5 * (total / len(event.messages) - queue.message_bytes)
        return queue

    def measured(self, queue: Queue) -> None:
        """Handles a change of the queue's measured step time."""
        if self._few:
            return
        kind, queue_id = _kind(queue), queue.function.queue_id
        lanes = self.lanes(queue.function)
        if lanes != self._lanes[kind][queue_id]:
            self._lanes[kind][queue_id] = lanes
            self._most[kind] = max(self._lanes[kind].values())

    def _lanes_most(self) -> dict[Kind, int]:
        if not self._few:
            return self._most
        most = dict.fromkeys(self._kinds, 0)
        for q in self._queues.values():
            kind = _kind(q)
            most[kind] = max(most[kind], self.lanes(q.function))
        return most

    def claim(self, now: float) -> None:
        """Orders claims from the queues that have waited longest, with a share of the room for
        each. One look serves all queues in which no message is expected.
        """
        free = self._asked = self._demand()
        if free == 0:
            return
        due, idle = self._ripe(now, free)
        if not due and not idle:
            return
        self._asked = None
        if idle:
            others = (q for q in self._queues.values() if q.consumer_id is not None and not q.wanting)
            for queue in [q for q in others if self._idle(q)]:
                self._want(queue, 1, now)
        for n, (queue, room) in enumerate(due):
            share = -(-free // (len(due) - n))
            limit = min(share, room, CLAIM_MAX)
            if queue.message_bytes:
                limit = min(limit, max(1, int(CLAIM_BYTES_MAX / queue.message_bytes)))
            free -= limit
            self._want(queue, limit, now)

    def _ripe(self, now: float, most: int) -> tuple[list[tuple[Queue, int]], bool]:
        """Returns at most `most` queues that are due and have room, with their room. Also returns
        whether a due queue exists in which no message is expected.
        """
        due: list[tuple[Queue, int]] = []
        crowded: list[Queue] = []
        idle, room_of = False, self._rooms()
        while self._due and self._due[0][0] <= now and len(due) < most:
            queue = self._unlist_first()
            if queue is None:
                continue
            if self._idle(queue):
                idle = True
            elif (room := room_of(queue)) > 0:
                due.append((queue, room))
            else:
                crowded.append(queue)
        for queue in crowded:
            self._list(queue)
        return due, idle

    def _want(self, queue: Queue, limit: int, now: float) -> None:
        looks = self._idle(queue)
        whole = queue.after is None
        lapsed = now >= queue.lapsed_at or (whole and self._settings.burst)
        first = 0
        if not looks and (lapsed or (queue.backlog and now >= queue.again_at)):
            first = (limit + queue.odd) // 2
            queue.odd = not queue.odd
            queue.again_at = now + AGAIN_EVERY_S
        if lapsed and not first and queue.backlog and not looks:
            # Fresh messages have their turn now.
            lapsed = False
        if lapsed and not looks:
            queue.lapsed_at = now + LAPSED_EVERY_S
        queue.wanted, queue.looking = limit, looks
        if not looks:
            self.wanted += limit
        queue.hinted, queue.lapsed = False, lapsed or looks
        assert queue.consumer_id is not None
        self._orders.append(
            Want(
                queue.function.queue_id,
                queue.consumer_id,
                limit,
                self._settings.read_ct_max,
                queue.after,
                lapsed,
                looks,
                first,
                queue.function.kind == "map",
            )
        )

    def _idle(self, queue: Queue) -> bool:
        """Whether several looks in a row have found the queue empty, without a hint since."""
        return queue.poll_s >= self._settings.poll_max_s

    def next_claim(self) -> float | None:
        """Returns when the next claim is due. Queues without room do not count: they would be due
        at once, again and again.
        """
        if not self._due or not (self._demand() if self._asked is None else self._asked):
            return None
        crowded: list[Queue] = []
        first, room_of = None, self._rooms()
        while self._due:
            at, entry, queue = self._due[0]
            if self._stands(entry, queue) and (self._idle(queue) or room_of(queue) > 0):
                first = at
                break
            if self._unlist_first():
                crowded.append(queue)
        for queue in crowded:
            self._list(queue)
        return first

    def _demand(self) -> int:
        """Returns how many messages to claim, or 0 if a claim is not worth its transaction yet. A
        claim takes CPU from the steps. So while every worker has enough runs, a claim waits until
        there is room for a quarter of the runs that workers can hold.
        """
        lanes = self._lanes_most()
        waiting = len(self.waiting)
        if self._waiting_functions:
            waiting = sum(not self._holds_back(self._queues[r.function.queue_id]) for r in self.waiting)
        free, at_hand, short = -waiting - self.wanted, 0, False
        for w in self._workers.values():
            if _open(w):
                count = len(w.runs)
                at_hand += count
                free += self._free(w, lanes[w.kind], None)
                short = short or count < LANES_MIN
        if free <= 0:
            return 0
        return free if short or free * 4 >= free + at_hand else 0

    def _rooms(self) -> Callable[[Queue], int]:
        """Returns a function that tells how many more messages of a queue the workers can hold now."""
        able: dict[Kind, list[Worker]] = {kind: [] for kind in self._kinds}
        for w in self._workers.values():
            if _open(w):
                able[w.kind].append(w)
        # The room of queues with the same number of lanes.
        same: dict[tuple[Kind, int], int] = {}

        def room_of(queue: Queue) -> int:
            if self._waiting_functions and self._holds_back(queue):
                return 0
            kind = _kind(queue)
            lanes = self.lanes(queue.function)
            if (room := same.get((kind, lanes))) is None:
                room = same[kind, lanes] = sum(self._free(w, lanes, None) for w in able[kind])
            if room > 0 or len(self._queues) == 1:
                return room
            return sum(self._free(w, lanes, queue) for w in able[kind])

        return room_of

    def _free(self, worker: Worker, lanes: int, queue: Queue | None) -> int:
        """Returns how many more runs of this queue the worker may get. Called many times after
        every event, so it must be fast, like everything in this module.
        """
        free = lanes - len(worker.runs)
        if worker.kind == "async":
            free += worker.waits
        if (
            free <= 0
            and queue is not None
            and len(self._queues) > 1
            and not queue.apart
            and self._owes_one(worker, queue)
        ):
            free = 1
        most = self._settings.max_runs_per_worker
        if most is not None:
            free = min(free, most - worker.given)
        return free if free > 0 else 0

    def _owes_one(self, worker: Worker, queue: Queue) -> bool:
        """Whether the worker gets one run of the queue beyond its lanes. Otherwise the many runs of
        queues with short steps would keep out a queue with long steps forever.
        """
        if (
            self._settings.lanes is not None
            or worker.kind == "async"
            or worker.of_queue[queue.function.queue_id]
        ):
            return False
        at_hand_s = sum(self._queues[q].step_s * n for q, n in worker.of_queue.items())
        return at_hand_s <= 2 * self._settings.commit_hide_s

    def set_apart(self, function: Function) -> None:
        """Makes each worker hold only one run of this function at a time from now on, because runs
        of the function have waited for each other.
        """
        self._queues[function.queue_id].apart = True

    def lanes(self, function: Function) -> int:
        """Returns how many runs of the function a worker should hold: one if its steps are long,
        many if they are tiny.
        """
        if self._queues[function.queue_id].apart:
            return 1
        if function.kind == "map":
            return RANGES
        if self._settings.lanes is not None:
            return self._settings.lanes
        if function.is_async:
            return ASYNC_LANES
        queue = self._queues[function.queue_id]
        if not queue.measured or queue.step_s >= LONG_STEP_S:
            return 1
        return max(LANES_MIN, min(LANES_MAX, round(self._settings.commit_hide_s / max(queue.step_s, 1e-6))))


def _kind(queue: Queue) -> Kind:
    return "async" if queue.function.is_async else "sync"


def _open(w: Worker) -> bool:
    """Whether the worker may get another run."""
    return _able(w) and not w.reserved and not w.stands and w.bytes < LANES_BYTES_MAX


def _able(w: Worker) -> bool:
    return w.state is WorkerState.READY and not w.exclusive and not w.blocked


def _size(step: RecordedStep) -> int:
    return len(step.output or b"") + len(step.error or b"")


def _chunks(steps: Sequence[RecordedStep]) -> Iterator[tuple[RecordedStep, ...]]:
    chunk: list[RecordedStep] = []
    size = 0
    for step in steps:
        if chunk and size + _size(step) > HISTORY_CHUNK_BYTES:
            yield tuple(chunk)
            chunk, size = [], 0
        chunk.append(step)
        size += _size(step)
    if chunk:
        yield tuple(chunk)
