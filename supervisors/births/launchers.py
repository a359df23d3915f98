"""Selects the launcher that this system supports."""

import os
import sys

from pgqrs import errors
from pgqrs.program import targets
from supervisors.births.launch import Launcher, StartMethod
from supervisors.births.nursery import Nursery
from supervisors.births.spawning import SpawnLauncher


def make_launcher(target: targets.Target, method: StartMethod | None, payload_bytes_max: int) -> Launcher:
    """Returns a launcher. Raises SupervisorError if the requested method is not available."""
    fork_works = sys.platform == "linux" and hasattr(os, "pidfd_open")
    if method == "fork" and not fork_works:
        raise errors.SupervisorError("--start-method fork needs Linux 5.4 or newer; use --start-method spawn")
    if method == "spawn" or not fork_works:
        return SpawnLauncher(target, payload_bytes_max)
    return Nursery(target, payload_bytes_max)
