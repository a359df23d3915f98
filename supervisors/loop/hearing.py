"""What one worker says: the bytes of its frames, from its pipe and from its board, checked and in their order.

A worker's frames are one stream of bytes. Some of it stands on the board before it comes through the pipe (board.py), so that
nothing is lost with a worker that dies. Here both are put together. Nothing in it is believed unchecked (credible.py): after the
first thing that no worker of ours says, nothing more is heard.

Pure but for the memory of the board; the simulation hears its workers with this class too.
"""

from collections.abc import Callable

from supervisors import wire
from supervisors.core.events import Received
from supervisors.loop.credible import Credit
from supervisors.worker.board import FRAMES_BYTES_MAX, BoardReader, OnBoard

AHEAD_BYTES_MAX = 16 * FRAMES_BYTES_MAX  # read from a board and not yet come through the pipe


class Hearing:
    """`handle` takes each frame of worker `n`, as an event. `distrust` is called once, with the reason, when the worker says what
    it cannot."""

    def __init__(
        self,
        n: int,
        board: BoardReader | None,
        handle: Callable[[Received], None],
        distrust: Callable[[str], None],
    ) -> None:
        self.credit = Credit()
        self.distrusted = False
        self._n = n
        self._board = board
        self._handle = handle
        self._distrust = distrust
        self._parser = wire.Parser("supervisor")
        self._received = 0  # bytes, through the pipe
        self._ahead = bytearray()  # read from the board, and yet to come through the pipe
        self._hides = False  # there was nonsense on the board, where the worker says what it runs

    @property
    def known(self) -> int:
        """How many bytes of the stream were read, from the pipe or the board."""
        return self._received + len(self._ahead)

    def come(self, data: bytes) -> None:
        """From the pipe. What the board has shown before must come as it was."""
        seen = min(len(data), len(self._ahead))
        differs = self._ahead[:seen] != data[:seen]
        self._received += len(data)
        del self._ahead[:seen]
        if differs:
            self._stop("its pipe and its board do not say the same")
        else:
            self._parse(data[seen:])

    def look(self) -> None:
        """Reads what the worker has not sent yet from its board."""
        if self._board is None or self.distrusted:
            return
        unsent = self._board.unsent(self.known)
        self._ahead += unsent
        if len(self._ahead) > AHEAD_BYTES_MAX:
            self._stop("its board says more than comes through its pipe")
        else:
            self._parse(unsent)

    def look_who_runs(self, is_known: Callable[[OnBoard], bool]) -> None:
        """Has the board say which run has the CPU, where that is not known."""
        running = self._board and self._board.on_cpu()
        if running and running.message_id and not self.distrusted and not is_known(running):
            self._says(running)

    def last_words(self, by_its_own: bool, is_async: bool) -> None:
        """The worker is dead, and its pipe is read to the end. Says what it had on the CPU, which its death is charged to.

        `by_its_own`: it was not killed from outside. An event loop's thread may have died for a run that has no entry of its own;
        and what a worker is killed for having sent was sent by the run that had the CPU last, or the same run would go on from
        worker to worker. Both are charged to the last entry, even if nobody has the CPU now.
        """
        self.look()
        last = (is_async and by_its_own) or self.distrusted
        if running := self._board and (self._board.last_on_cpu() if last else self._board.on_cpu()):
            self._says(running)
        if self._hides and (suspect := self.credit.suspect()):
            self._handle(Received(self._n, suspect))

    def _says(self, running: OnBoard) -> None:
        """As the worker itself would have."""
        frame: wire.Up = wire.Idle()
        if running.message_id:
            frame = wire.Started(running.message_id, running.claim_no, running.step, running.position)
        try:
            self._take(frame)
        except wire.WireError as e:
            self._hides = True
            self._stop(f"on its board: {e}")

    def _parse(self, data: bytes) -> None:
        if self.distrusted:
            return  # what follows nonsense is nonsense
        try:
            for frame in self._parser.feed(data):
                self._take(frame)  # type: ignore[arg-type]
        except wire.WireError as e:
            self._stop(str(e))

    def _take(self, frame: wire.Up) -> None:
        """Raises WireError for what this worker cannot have to say."""
        self.credit.check(frame)
        try:
            self._handle(Received(self._n, frame))
        except Exception as e:  # a mistake of ours, which is to cost this worker and not all that runs
            raise wire.WireError(f"a {type(frame).__name__} was met by {type(e).__name__}: {e}") from e

    def _stop(self, why: str) -> None:
        self.distrusted = True
        self._distrust(why)
