"""Reports the state of the supervisor to systemd's notification socket."""

import socket
from collections.abc import MutableMapping
from contextlib import suppress

from pgqrs.model.printable import printable
from supervisors.health.health import Health


class Systemd:
    """Implements sd_notify(3): READY once, STATUS when it changes, WATCHDOG at half of systemd's
    interval.
    """

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        # Removed from the environment: a worker's child could otherwise notify in the supervisor's name.
        path = environ.pop("NOTIFY_SOCKET")
        watchdog_us = environ.pop("WATCHDOG_USEC", "")
        environ.pop("WATCHDOG_PID", None)
        self._address = "\0" + path[1:] if path.startswith("@") else path
        self._every_s = int(watchdog_us) / 2e6 if watchdog_us.isdigit() else None
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)
        self._fed_at = 0.0
        self._was_ready = False
        self._status = ""

    def tell(self, health: Health) -> None:
        lines = []
        if health.ready and not self._was_ready:
            self._was_ready = True
            lines.append("READY=1")
        status = printable(health.why_not or "") or ", ".join(f"{v} {k}" for k, v in health.counts.items())
        if status != self._status:
            self._status = status
            lines.append(f"STATUS={status}")
        if self._every_s is not None and health.at - self._fed_at >= self._every_s:
            self._fed_at = health.at
            lines.append("WATCHDOG=1")
        self._send(lines)

    def stopping(self) -> None:
        self._send(["STOPPING=1"])

    def close(self) -> None:
        self._socket.close()

    def _send(self, lines: list[str]) -> None:
        if lines:
            with suppress(OSError):  # nobody listens any more, or too slowly
                self._socket.sendto("\n".join(lines).encode(), self._address)
