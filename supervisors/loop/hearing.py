"""The frames of one worker, from its pipe and its board, checked and in order.

A worker's frames are one stream of bytes. Part of it is on the board before it comes through the
pipe (board.py), so that nothing is lost when a worker dies. This module joins both parts. Every
frame is checked (credible.py). After the first frame that no worker of pgqrs sends, nothing more is
read.

Pure except for the memory of the board. The simulation uses this class too.
"""

from collections.abc import Callable

from supervisors import wire
from supervisors.core.events import Received
from supervisors.loop.credible import Credit
from supervisors.worker.board import FRAMES_BYTES_MAX, BoardReader, OnBoard

# The most bytes read from a board that have not come through the pipe yet.
AHEAD_BYTES_MAX = 16 * FRAMES_BYTES_MAX


class Hearing:
    """Reads the frames of worker `n`, and calls `handle` with each of them as an event. Calls
    `distrust` once, with the reason, when the worker sends a frame that no worker of pgqrs sends.
    """

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
        # The bytes received through the pipe.
        self._received = 0
        # The bytes read from the board that are still to come through the pipe.
        self._ahead = bytearray()
        # Whether the entry on the board that names the executing run was invalid.
        self._hides = False

    @property
    def known(self) -> int:
        """Returns how many bytes of the stream were read so far, from the pipe or the board."""
        return self._received + len(self._ahead)

    def come(self, data: bytes) -> None:
        """Takes bytes from the pipe. If they differ from the bytes that were on the board before,
        the worker is no longer believed.
        """
        seen = min(len(data), len(self._ahead))
        differs = self._ahead[:seen] != data[:seen]
        self._received += len(data)
        del self._ahead[:seen]
        if differs:
            self._stop("its pipe and its board do not say the same")
        else:
            self._parse(data[seen:])

    def look(self) -> None:
        """Reads from the board the frames that the worker has not sent yet."""
        if self._board is None or self.distrusted:
            return
        unsent = self._board.unsent(self.known)
        self._ahead += unsent
        if len(self._ahead) > AHEAD_BYTES_MAX:
            self._stop("its board says more than comes through its pipe")
        else:
            self._parse(unsent)

    def look_who_runs(self, is_known: Callable[[OnBoard], bool]) -> None:
        """Reads from the board which run has the CPU. Reports the run unless `is_known` returns
        True for it.
        """
        running = self._board and self._board.on_cpu()
        if running and running.message_id and not self.distrusted and not is_known(running):
            self._says(running)

    def last_words(self, by_its_own: bool, is_async: bool) -> None:
        """Reports which run the dead worker had on its CPU, because the death is charged to that
        run. The caller has read the pipe to its end.

        `by_its_own`: the worker was not killed from outside. In two cases the last entry of the
        board is charged even if no run has the CPU now. First, a thread of an event loop may have
        died for a run that has no entry of its own. Second, a worker that is killed for a bad frame
        has sent the frame for the run that had the CPU last. Uncharged, this run would kill one
        worker after another.
        """
        self.look()
        last = (is_async and by_its_own) or self.distrusted
        if running := self._board and (self._board.last_on_cpu() if last else self._board.on_cpu()):
            self._says(running)
        if self._hides and (suspect := self.credit.suspect()):
            self._handle(Received(self._n, suspect))

    def _says(self, running: OnBoard) -> None:
        """Handles the entry of the board like a frame of the worker."""
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
            # Bytes after an invalid frame are invalid too.
            return
        try:
            for frame in self._parser.feed(data):
                self._take(frame)  # type: ignore[arg-type]
        except wire.WireError as e:
            self._stop(str(e))

    def _take(self, frame: wire.Up) -> None:
        """Checks a frame and hands it on. Raises WireError if no worker of pgqrs sends such a
        frame.
        """
        self.credit.check(frame)
        try:
            self._handle(Received(self._n, frame))
        except Exception as e:
            # A bug of the supervisor should cost this worker, and not all runs.
            raise wire.WireError(f"a {type(frame).__name__} was met by {type(e).__name__}: {e}") from e

    def _stop(self, why: str) -> None:
        self.distrusted = True
        self._distrust(why)
