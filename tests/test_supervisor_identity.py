"""A supervisor takes another one for dead only where it certainly is: what it cannot see may
live."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import pgqrs
from supervisors.machine import identity
from supervisors.machine.identity import NOT_KNOWN, is_gone, own_identity
from tests.store.given import identity as somebody


@pytest.fixture
def child():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


@pytest.fixture
def without_proc(monkeypatch):
    """As where /proc is not mounted."""
    monkeypatch.setattr(identity, "_read", lambda path: "")
    monkeypatch.setattr(identity, "_link", lambda path: "")


def hide(monkeypatch, pid):
    """As with hidepid=2, for a process of another user."""
    read = identity._read

    def kill(target, number):
        assert number == 0
        if target == pid:
            raise PermissionError
        os.stat(f"/proc/{target}")

    monkeypatch.setattr(identity, "_read", lambda path: "" if path == f"/proc/{pid}/stat" else read(path))
    monkeypatch.setattr(identity.os, "kill", kill)


def test_one_that_lives_is_not_gone(child):
    assert not is_gone(child.pid, identity._started(child.pid))
    assert not is_gone(os.getpid(), own_identity().pid_started)


def test_one_that_has_ended_is_gone(child):
    began = identity._started(child.pid)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert is_gone(child.pid, began), "it is a zombie"
    child.wait()
    assert is_gone(child.pid, began)


def test_a_pid_that_another_process_has_by_now_is_gone(child):
    assert is_gone(child.pid, identity._started(child.pid) - 1)


def test_one_that_hides_is_not_gone(child, monkeypatch):
    began = identity._started(child.pid)
    hide(monkeypatch, child.pid)
    assert not is_gone(child.pid, began)


def test_without_proc_nobody_alive_is_gone(child, without_proc):
    assert not is_gone(child.pid, 4711)
    child.kill()
    child.wait()
    assert is_gone(child.pid, 4711), "the kernel says so"


def test_one_that_did_not_know_when_it_started_is_not_judged_by_that(child):
    assert not is_gone(child.pid, NOT_KNOWN)


def test_without_proc_a_supervisor_is_nobodys_neighbour(without_proc):
    """Its pid may be of another namespace, where it is somebody else's or nobody's."""
    one, other = own_identity(), own_identity()
    if sys.platform == "linux":
        assert one.boot_id != other.boot_id
        assert one.pid_ns != other.pid_ns
    assert one.pid_started == NOT_KNOWN


FLOW = """
import pgqrs

@pgqrs.workflow
def one() -> int:
    return 1
"""


@pytest.mark.slow
def test_supervisors_without_proc_leave_each_other_alone(sqlite_dsn, tmp_path):
    """Two that see nothing of themselves or each other keep their leases for longer than a look
    around takes."""
    (tmp_path / "flow.py").write_text(FLOW)
    (tmp_path / "blind.py").write_text(
        "import sys\nfrom supervisors.machine import identity\n"
        "identity._stat = lambda pid: None\n"
        "from pgqrs.cli import main\nmain()\n"
    )
    command = [sys.executable, "blind.py", "supervise", "flow.py", "--dsn", sqlite_dsn, "--workers", "1"]
    processes = [
        subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        )
        for _ in range(2)
    ]  # fmt: skip
    try:
        with pgqrs.connect(sqlite_dsn) as store:
            store.install()
            assert store.trigger("one", None).result(timeout=60) == 1
            deadline = time.monotonic() + 60
            while {w.pid for w in store.consumers()} != {p.pid for p in processes}:
                assert time.monotonic() < deadline, "they did not both start"
            names = {w.name for w in store.consumers()}
            for _ in range(3):  # each look around is a second
                with pytest.raises(subprocess.TimeoutExpired):
                    processes[0].wait(1.2)
            assert {w.name for w in store.consumers()} == names, "nobody has signed up anew"
    finally:
        for p in processes:
            p.terminate()
        told = [p.communicate(timeout=30)[0] for p in processes]
    assert not [t for t in told if "took back" in t], told


def test_a_supervisor_of_another_host_is_not_looked_at(sqlite_dsn):
    with pgqrs.connect(sqlite_dsn) as store:
        store.install()
        queue = store.messages.ensure_queue("q")
        store.messages.register_supervisor(somebody("far", host="elsewhere"), {"q": queue}, 15)
        assert store.messages.watched(own_identity()) == ([], False)
