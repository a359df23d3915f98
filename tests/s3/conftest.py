"""S3 behind a proxy that counts and goes wrong, a cache of its own for each test, and a store on an object of its own."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import pgqrs
from pgqrs.clients.blocking import Store
from pgqrs.config import Config, DurabilityMode
from pgqrs.store.s3 import bucket
from tests.s3.faults import Proxy
from tests.s3_server import S3Server


@pytest.fixture
def proxy(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Proxy]:
    monkeypatch.setattr(bucket, "BACKOFF_S", (0.01, 0.02, 0.03, 0.04))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with Proxy(s3_server).running() as proxy:
        for name, value in s3_server.environment(proxy.endpoint).items():
            monkeypatch.setenv(name, value)
        yield proxy


@pytest.fixture
def address(s3_dsn: str, proxy: Proxy) -> str:
    return s3_dsn


Open = Callable[..., Store]


@pytest.fixture
def opened(address: str, tmp_path: Path) -> Iterator[Open]:
    """Opens a blocking store: with a cache of its own, as another machine would, unless one is named."""
    with ExitStack() as stack:
        machines = 0

        def opened(mode: DurabilityMode = DurabilityMode.Durable, cache: Path | None = None) -> Store:
            nonlocal machines
            machines += 1
            config = Config(address)
            config.s3_mode = mode
            config.s3_cache_dir = str(cache or tmp_path / f"machine {machines}")
            return stack.enter_context(pgqrs.connect_with(config).open())

        yield opened


@pytest.fixture
def store(opened: Open) -> Store:
    store = opened()
    store.install()
    return store
