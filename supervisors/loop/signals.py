"""Signals and the terminal of a supervisor process: requests to stop or to suspend, and the end of
the terminal.
"""

import errno
import os
import signal
import socket
import termios
from contextlib import ExitStack, suppress


class Signals:
    """Counts the requests of signals. The loop looks at the counts once a pass.

    SIGINT and SIGTERM each raise the level of stopping (`asked`) by one. SIGHUP asks for the first
    level, however often it comes, because the shell and the kernel may both send it. If the process
    was started with SIGHUP ignored (nohup), it continues to ignore SIGHUP.
    """

    def __init__(self) -> None:
        # The level of stopping asked for.
        self.asked = 0
        # Whether Ctrl-Z was pressed.
        self.suspends = False
        # While starting, a signal ends the process at once, because the import of the target may
        # never end.
        self.starting = False
        # Whether the process stays when its terminal is closed.
        self.stays = False

    def install(self, wake: socket.socket, stack: ExitStack) -> None:
        """Makes each signal write to `wake`. `stack` restores the former handlers when it is
        closed.
        """
        old_fd = signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        stack.callback(signal.set_wakeup_fd, old_fd)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                self.stays = True
                continue
            stack.callback(signal.signal, number, signal.signal(number, self._on_signal))

    def install_suspending(self, stack: ExitStack) -> None:
        """Handles a terminal's Ctrl-Z, unless the parent process set this signal to be ignored."""
        if signal.getsignal(signal.SIGTSTP) == signal.SIG_DFL:
            stack.callback(signal.signal, signal.SIGTSTP, signal.signal(signal.SIGTSTP, self._on_suspending))

    def hung_up(self) -> None:
        self.raise_to(1)

    def raise_to(self, level: int) -> None:
        self.asked = max(self.asked, level)

    def suspend(self) -> None:
        """Stops this process until another one continues it."""
        ours = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, ours)

    def _on_signal(self, number: int, frame: object) -> None:
        if number == signal.SIGHUP:
            self.hung_up()
            _leave_terminal()
        else:
            self.asked += 1
        if self.starting:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(0)

    def _on_suspending(self, number: int, frame: object) -> None:
        self.suspends = True


def _leave_terminal() -> None:
    """Redirects the output to /dev/null, because a terminal that has hung up refuses every write."""
    for fd in (1, 2):
        try:
            termios.tcgetattr(fd)
        except termios.error as e:
            if e.args[0] == errno.EIO:
                with suppress(OSError):
                    null = os.open(os.devnull, os.O_WRONLY)
                    os.dup2(null, fd)
                    os.close(null)
