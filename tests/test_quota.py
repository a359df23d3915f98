"""How many cores a container with a quota may use."""

from pathlib import Path

import pytest

from supervisors.machine import quota


def group(tmp_path: Path, membership: str, **files: str) -> float | None:
    """`files`: what stands in them, by their place below the mount, with __ for a slash and _ for a dot at the end."""
    (tmp_path / "membership").write_text(membership)
    for name, text in files.items():
        file = (
            tmp_path
            / "mount"
            / name.replace("__", "/").replace("cpu_max", "cpu.max").replace("cpu_cfs", "cpu.cfs")
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return quota.quota_cpus(tmp_path / "membership", tmp_path / "mount")


@pytest.mark.parametrize(
    ("told", "cpus"),
    [("200000 100000\n", 2.0), ("50000 100000\n", 0.5), ("max 100000\n", None), ("", None), ("x y z", None)],
)
def test_a_quota_of_version_2(tmp_path, told, cpus):
    assert group(tmp_path, "0::/\n", cpu_max=told) == cpus


def test_the_least_quota_on_the_way_up_counts(tmp_path):
    found = group(
        tmp_path, "0::/a/b\n", a__cpu_max="150000 100000", a__b__cpu_max="400000 100000", cpu_max="max 100000"
    )
    assert found == 1.5


def test_a_quota_of_version_1(tmp_path):
    told = "4:cpu,cpuacct:/docker/abc\n1:name=systemd:/x\n0::/\n"
    assert group(tmp_path, told, cpu__cpu_cfs_quota_us="-1\n", cpu__cpu_cfs_period_us="100000\n") is None
    # The path is the host's: in the container only the top is to be seen.
    assert group(tmp_path, told, cpu__cpu_cfs_quota_us="300000\n", cpu__cpu_cfs_period_us="100000\n") == 3.0


def test_where_nothing_is_to_be_read_there_is_no_quota(tmp_path):
    assert quota.quota_cpus(tmp_path / "no", tmp_path / "mount") is None


@pytest.mark.parametrize(("told", "cores"), [("50000 100000", 1), ("150000 100000", 2), ("max 100000", 8)])
def test_a_part_of_a_core_counts_as_one(tmp_path, monkeypatch, told, cores):
    group(tmp_path, "0::/\n", cpu_max=told)
    monkeypatch.setattr(quota, "MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(quota, "MOUNTED", tmp_path / "mount")
    monkeypatch.setattr(quota.os, "sched_getaffinity", lambda _: set(range(8)))
    assert quota.cores() == cores
