"""Hosts for a test: namespaces of this machine, with a network and a host name of their own, each joined to us by a cable.

Only root may make them. The pids are this machine's, so that tests signal and watch what runs there as anything else.
"""

import os
import subprocess
from types import TracebackType

import pytest


class Host:
    """`within` goes before a command that is to run there; `address` is ours on the cable to it."""

    def __init__(self, number: int) -> None:
        self.name = f"pgqrs{os.getpid()}n{number}"
        self._ours, self._its = f"pq{os.getpid()}n{number}a", f"pq{os.getpid()}n{number}b"
        # A network of four addresses, which no other pytest process of this machine has at the same time.
        net = (os.getpid() * 4 + number) % 2**14 * 4
        self.address, its_address = (f"10.213.{(net + n) // 256}.{(net + n) % 256}" for n in (1, 2))
        self.within = (
            *("ip", "netns", "exec", self.name),
            *("unshare", "--uts", "sh", "-c", f'hostname {self.name} && exec "$@"', "sh"),
        )
        self._commands = (
            f"ip netns add {self.name}",
            f"ip link add {self._ours} type veth peer name {self._its}",
            f"ip link set {self._its} netns {self.name}",
            f"ip addr add {self.address}/30 dev {self._ours}",
            f"ip link set {self._ours} up",
            f"ip netns exec {self.name} ip addr add {its_address}/30 dev {self._its}",
            f"ip netns exec {self.name} ip link set {self._its} up",
            f"ip netns exec {self.name} unshare --uts true",
        )

    def pull_the_plug(self) -> None:
        """Nothing passes from now on, and nobody is told."""
        _do(f"ip link set {self._ours} down")

    def plug_in(self) -> None:
        _do(f"ip link set {self._ours} up")

    def __enter__(self) -> "Host":
        try:
            for command in self._commands:
                _do(command)
        except (OSError, subprocess.CalledProcessError) as e:
            self.__exit__(None, None, None)
            told = e.stderr.strip() if isinstance(e, subprocess.CalledProcessError) else str(e)
            pytest.skip(f"no network namespace can be made here: {told}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for command in (f"ip link del {self._ours}", f"ip netns del {self.name}"):
            subprocess.run(command.split(), capture_output=True, check=False)


def _do(command: str) -> None:
    subprocess.run(command.split(), capture_output=True, text=True, check=True)
