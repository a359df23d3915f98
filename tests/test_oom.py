"""Whether the kernel has killed for want of memory, by the count of the control group that is nearest."""

from pathlib import Path

import pytest

from supervisors.machine.oom import DYING_S, OutOfMemory


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    (tmp_path / "proc" / "self").mkdir(parents=True)
    write(tmp_path / "proc" / "vmstat", 0)
    return tmp_path / "proc"


def write(file: Path, kills: int) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"low 0\noom 9\noom_kill {kills}\noom_group_kill 0\n")
    return file


@pytest.mark.parametrize(
    ("groups", "file"),
    [
        ("0::/app/a\n", "app/a/memory.events"),
        ("0::/app/a\n", "memory.events"),
        ("5:devices:/\n4:cpu,memory:/app/a\n", "memory/app/a/memory.oom_control"),
        ("4:memory:/app/a\n", "memory/memory.oom_control"),
    ],
)
def test_each_kill_answers_for_one_death(proc: Path, tmp_path: Path, groups: str, file: str) -> None:
    (proc / "self" / "cgroup").write_text(groups)
    count = write(tmp_path / file, 3)
    oom = OutOfMemory(tmp_path, proc)
    assert not oom.took(), "what was killed before has nothing to do with us"
    write(count, 5)
    assert [oom.took() for _ in range(3)] == [True, True, False]


def test_a_large_process_takes_a_while_to_die(proc: Path, tmp_path: Path) -> None:
    now = 100.0
    oom = OutOfMemory(tmp_path, proc, lambda: now)
    write(proc / "vmstat", 1)
    oom.look()
    now += DYING_S / 2
    oom.look()
    assert oom.took()
    assert not oom.took()


def test_each_kill_is_remembered_for_so_long_whatever_comes_after(proc: Path, tmp_path: Path) -> None:
    now = 100.0
    oom = OutOfMemory(tmp_path, proc, lambda: now)
    for n in range(1, 6):
        write(proc / "vmstat", n)
        oom.look()
        now += DYING_S * 0.75
    assert [oom.took(), oom.took()] == [True, False], "the others died long ago"


def test_a_count_that_cannot_be_read_once_says_nothing(proc: Path, tmp_path: Path) -> None:
    file = write(proc / "vmstat", 7)
    oom = OutOfMemory(tmp_path, proc)
    file.unlink()
    oom.look()
    write(file, 7)
    assert not oom.took()
    write(file, 8)
    assert oom.took()


def test_what_is_killed_long_after_had_another_reason(proc: Path, tmp_path: Path) -> None:
    """The kernel had taken something else of the group, such as a subprocess of a step."""
    now = 100.0
    oom = OutOfMemory(tmp_path, proc, lambda: now)
    write(proc / "vmstat", 1)
    oom.look()
    now += DYING_S + 0.1
    assert not oom.took()


def test_the_own_group_counts_and_not_the_whole_machine(proc: Path, tmp_path: Path) -> None:
    (proc / "self" / "cgroup").write_text("0::/app\n")
    write(tmp_path / "app" / "memory.events", 0)
    oom = OutOfMemory(tmp_path, proc)
    write(proc / "vmstat", 1)
    assert not oom.took()


def test_without_a_group_the_machine_counts(proc: Path, tmp_path: Path) -> None:
    oom = OutOfMemory(tmp_path, proc)
    write(proc / "vmstat", 1)
    assert oom.took()


def test_where_nothing_is_counted_nothing_is_said(tmp_path: Path) -> None:
    assert not OutOfMemory(tmp_path, tmp_path).took()
