"""Selects the listeners that the supervisor reports its state to."""

import os
from collections.abc import Callable, MutableMapping

from supervisors.health.health import Listener
from supervisors.health.systemd import Systemd


def listeners(
    http: tuple[str, int] | None, clock: Callable[[], float], environ: MutableMapping[str, str] = os.environ
) -> list[Listener]:
    found: list[Listener] = []
    if environ.get("NOTIFY_SOCKET"):
        found.append(Systemd(environ))
    if http is not None:
        # Imported only if needed: few supervisors use HTTP.
        from supervisors.health.http import Http

        found.append(Http(*http, clock))
    return found
