"""Who is told how the supervisor is."""

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
        from supervisors.health.http import Http  # whose server's modules few supervisors need

        found.append(Http(*http, clock))
    return found
