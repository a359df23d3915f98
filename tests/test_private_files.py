"""A database file is made for its owner alone, whatever the umask is; one that is there keeps
its mode."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

import pgqrs

pytestmark = pytest.mark.parametrize("scheme", ["sqlite", "turso"])


@pytest.fixture(autouse=True)
def generous_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    return {p.name: stat.S_IMODE(p.stat().st_mode) for p in folder.iterdir()}


def test_a_new_file_and_what_is_beside_it_are_their_owners_alone(scheme: str, tmp_path: Path) -> None:
    with pgqrs.connect(f"{scheme}://{tmp_path}/pgqrs.db") as store:
        store.enqueue("tasks", "a secret")
        found = modes(tmp_path)
        assert {"pgqrs.db", "pgqrs.db-wal"} <= set(found)
        assert set(found.values()) == {0o600}, found
    with pgqrs.connect(f"{scheme}://{tmp_path}/pgqrs.db") as store:
        store.enqueue("tasks", "another")
        assert set(modes(tmp_path).values()) == {0o600}


def test_a_file_that_is_there_keeps_its_mode_and_gives_it_to_what_is_beside_it(
    scheme: str, tmp_path: Path
) -> None:
    (tmp_path / "pgqrs.db").touch(0o660)
    with pgqrs.connect(f"{scheme}://{tmp_path}/pgqrs.db") as store:
        store.enqueue("tasks", "shared")
        assert set(modes(tmp_path).values()) == {0o660}


def test_a_folder_that_is_not_there_is_told_as_before(scheme: str, tmp_path: Path) -> None:
    with pytest.raises(pgqrs.PgqrsConnectionError, match="cannot open"):
        pgqrs.connect(f"{scheme}://{tmp_path}/none/pgqrs.db").open()
    assert modes(tmp_path) == {}
