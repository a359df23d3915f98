"""The marks that say on which backends a test runs, and where tests write."""

import tempfile

import pytest

from tests.conftest import backends_for, fast_backends, known
from tests.postgres_server import quick_root


def test_the_fast_part_is_on_sqlite(request):
    assert fast_backends(request.node) == {"sqlite"}


@pytest.mark.fast_on("postgres")
def test_and_on_what_a_mark_names_besides(request):
    assert fast_backends(request.node) == {"sqlite", "postgres"}


@pytest.mark.parametrize("names", [("oracle",), ("sqlite", "oracle"), ()])
def test_a_mark_names_backends_that_there_are(names):
    with pytest.raises(pytest.UsageError, match="the mark backends names some of sqlite"):
        known(pytest.mark.backends(*names).mark)


@pytest.mark.backends("sqlite", "postgres")
def test_a_test_runs_on_the_backends_of_its_mark_alone(dsn):
    assert dsn.startswith(("sqlite", "postgresql"))


def test_the_environment_names_them_too(request, monkeypatch):
    monkeypatch.setenv("PGQRS_TEST_BACKENDS", "s3,sqlite")
    assert backends_for(request.path) == ["sqlite", "s3"]


def test_a_folder_for_temporary_files_that_was_chosen_is_used(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert quick_root() == str(tmp_path)
