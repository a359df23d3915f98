"""What a fault test says that it has proved. docs/guarantees.md is made of it: see guarantees.py."""

import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

RESULTS = "PGQRS_TEST_GUARANTEES"  # a file to which every proof is appended, as a JSON line


class Proof(msgspec.Struct, frozen=True):
    """Of one test, for one set of its parameters. `seconds` were measured, and had to be fewer than `within`."""

    test: str  # module::function
    failure: str
    happens: str
    charged: str = ""
    seconds: float | None = None
    within: float | None = None


Proves = Callable[..., None]


@pytest.fixture
def proves(request: pytest.FixtureRequest) -> Proves:
    """Called at the end of a test: `proves(failure, what happens, charged=…, seconds=…, within=…)`,
    with literal texts.
    """

    def proved(
        failure: str,
        happens: str,
        charged: str = "",
        seconds: float | None = None,
        within: float | None = None,
    ) -> None:
        assert seconds is None or within is None or seconds < within, f"{seconds:.3f} s: {happens}"
        test = f"{Path(request.node.path).stem}::{request.function.__name__}"
        if path := os.environ.get(RESULTS):
            line = msgspec.json.encode(Proof(test, failure, happens, charged, seconds, within)) + b"\n"
            fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            os.write(fd, line)  # in one piece: pytest may have several processes
            os.close(fd)

    return proved
