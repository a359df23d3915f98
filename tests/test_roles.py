"""Roles with the least rights: the grants of docs/roles.md are enough, and what is missing is
told in words before anything runs."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

import pgqrs
from pgqrs import errors
from pgqrs.store import checking

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "roles.md"
NAMED = ("pgqrs_owner", "pgqrs_supervisor", "pgqrs_client", "pgqrs_operator", "pgqrs_reader")
# Roles belong to a whole server, which several pytest processes may share.
ROLES = {name: f"{name}_{os.getpid()}" for name in NAMED}
TIMEOUT_S = 60
FLOW = """
import time
import pgqrs

@pgqrs.step
def slow(n: int) -> int:
    time.sleep(0.02)
    return n

@pgqrs.workflow
def counted(n: int) -> int:
    return sum(slow(1) for _ in range(n))

@pgqrs.handler(queue="plain")
def plain(n: int) -> None:
    if n == 0:
        raise ValueError("no")
"""


def blocks() -> list[str]:
    return re.findall(r"```sql\n(.*?)```", PAGE.read_text(), re.S)


def ours(sql: str) -> str:
    """With the roles of this process for those of the page."""
    return re.sub(rf"\b({'|'.join(NAMED)})\b", lambda m: ROLES[m[0]], sql)


@pytest.fixture
def roles(postgres_dsn: str) -> Iterator[dict[str, str]]:
    """DSNs by role, of a database that was set up as the page says."""
    make, grant = blocks()[:2]
    parts = urlsplit(postgres_dsn)
    host = parts.netloc.rpartition("@")[2]
    as_role = {name: parts._replace(netloc=f"{role}@{host}").geturl() for name, role in ROLES.items()}
    with psycopg.connect(postgres_dsn, autocommit=True) as admin:
        admin.execute(ours(make).encode())
        config = pgqrs.Config(as_role["pgqrs_owner"], schema="pgqrs")
        with pgqrs.connect_with(config) as store:
            store.install()
        admin.execute(ours(grant).encode())
        yield as_role
        admin.execute(b"drop schema pgqrs cascade")
        for role in ROLES.values():
            admin.execute(f"drop owned by {role}; drop role {role}".encode())


def store_as(dsn: str) -> pgqrs.BlockingStore:
    return pgqrs.BlockingStore(pgqrs.Config(dsn, schema="pgqrs")).open()


def pgqrs_command(*arguments: str, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "pgqrs", *arguments], capture_output=True, text=True, timeout=TIMEOUT_S, cwd=cwd or ROOT
    )  # fmt: skip


def test_the_page_has_the_roles_that_are_tried_here() -> None:
    text = "\n".join(blocks())
    assert set(re.findall(r"\bpgqrs_(?:owner|supervisor|client|operator|reader)\b", text)) == set(NAMED)


@pytest.mark.slow
def test_supervisor_client_operator_and_reader_do_their_work_with_the_grants_of_the_page(
    roles: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "flow.py").write_text(FLOW)
    client = store_as(roles["pgqrs_client"])
    client.enqueue("plain", 0)
    client.enqueue_many("plain", [1] * 200)
    handles = [client.trigger("counted", n) for n in range(5)]
    done = pgqrs_command(
        "supervise", "flow.py", "--burst", "--schema", "pgqrs", "--max-read-ct", "1", "--dsn", roles["pgqrs_supervisor"], cwd=tmp_path
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [h.result(timeout=1) for h in handles] == list(range(5))
    operator = store_as(roles["pgqrs_operator"])
    [(queue, dead)] = operator.dead()
    assert queue == "plain"
    operator.replay(dead.id)
    run = operator.trigger("counted", 1)
    run.cancel()
    consumer = operator.consumer("plain")
    [message] = consumer.dequeue(5)
    consumer.archive(message.id)
    assert run.status == pgqrs.WorkflowStatus.Cancelled
    reader = store_as(roles["pgqrs_reader"])
    assert len(reader.runs()) == 6
    assert {q.queue_name for q in reader.queues()} == {"plain", "counted"}
    with pytest.raises(errors.DatabaseError, match=r"permission denied .*docs/roles\.md"):
        reader.enqueue("more", 1)
    for store in (client, operator, reader):
        store.close()


@pytest.mark.slow
def test_a_supervisor_that_lacks_a_right_says_which_and_does_not_start(
    roles: dict[str, str], postgres_dsn: str, tmp_path: Path
) -> None:
    (tmp_path / "flow.py").write_text(FLOW)
    with psycopg.connect(postgres_dsn, autocommit=True) as admin:
        admin.execute(ours("revoke insert on pgqrs.pgqrs_workflow_steps from pgqrs_supervisor").encode())
        admin.execute(
            ours("revoke usage on sequence pgqrs.pgqrs_queues_id_seq from pgqrs_supervisor").encode()
        )
    told = pgqrs_command(
        "supervise",
        "flow.py",
        "--burst",
        "--schema",
        "pgqrs",
        "--dsn",
        roles["pgqrs_supervisor"],
        cwd=tmp_path,
    )
    assert told.returncode == 3
    assert (
        f"the role '{ROLES['pgqrs_supervisor']}' lacks what a supervisor needs: insert on pgqrs_workflow_steps; "
        "usage on sequence pgqrs.pgqrs_queues_id_seq" in told.stderr
    )


@pytest.mark.slow
def test_what_a_supervisor_may_not_do_for_a_while_hurts_no_run(
    roles: dict[str, str], postgres_dsn: str, tmp_path: Path
) -> None:
    (tmp_path / "flow.py").write_text(FLOW)
    with store_as(roles["pgqrs_client"]) as client, psycopg.connect(postgres_dsn, autocommit=True) as admin:
        handles = [client.trigger("counted", 50) for _ in range(10)]
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "pgqrs", "supervise", "flow.py", "--schema", "pgqrs", "--workers", "2", "--dsn", roles["pgqrs_supervisor"]],
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        try:
            for right in ("insert on pgqrs.pgqrs_workflow_steps", "update on pgqrs.pgqrs_messages"):
                wait_for(admin, "select count(*) > 0 from pgqrs.pgqrs_workflow_runs where status = 'RUNNING'")
                admin.execute(ours(f"revoke {right} from pgqrs_supervisor").encode())
                says(supervisor, "permission denied")
                admin.execute(ours(f"grant {right} to pgqrs_supervisor").encode())
                says(supervisor, "the database is back")
            assert [h.result(timeout=60) for h in handles] == [50] * 10
            assert all(len(h.steps()) == 50 for h in handles), "no step is missing"
        finally:
            supervisor.terminate()
            supervisor.communicate(timeout=30)
        assert supervisor.returncode == 0


def says(supervisor: "subprocess.Popen[str]", text: str) -> None:
    assert supervisor.stdout is not None
    while text not in (line := supervisor.stdout.readline()):
        assert line, "it ended"


def wait_for(admin: "psycopg.Connection[tuple[object, ...]]", condition: str) -> None:
    for _ in range(600):
        row = admin.execute(condition.encode()).fetchone()
        if row is not None and row[0]:
            return
        threading.Event().wait(0.05)
    pytest.fail(f"not within 30 s: {condition}")


def test_verify_and_install_warn_of_what_the_role_lacks(roles: dict[str, str]) -> None:
    told = pgqrs_command("verify", "--schema", "pgqrs", "--dsn", roles["pgqrs_reader"])
    assert told.returncode == 0
    lacks = f"warning: the role '{ROLES['pgqrs_reader']}' lacks what a supervisor needs: "
    assert lacks in told.stderr
    assert "insert on pgqrs_queues; " in told.stderr
    assert pgqrs_command("verify", "--schema", "pgqrs", "--dsn", roles["pgqrs_supervisor"]).stderr == ""
    assert pgqrs_command("install", "--schema", "pgqrs", "--dsn", roles["pgqrs_owner"]).stderr == ""


def test_a_role_that_may_not_even_look_is_told_what_it_lacks(
    roles: dict[str, str], postgres_dsn: str
) -> None:
    with psycopg.connect(postgres_dsn, autocommit=True) as admin:
        admin.execute(ours("revoke select on all tables in schema pgqrs from pgqrs_reader").encode())
    told = pgqrs_command("verify", "--schema", "pgqrs", "--dsn", roles["pgqrs_reader"])
    assert told.returncode == 3
    assert "permission denied for table pgqrs_migrations" in told.stderr
    assert "select on pgqrs_messages" in told.stderr


def test_the_grants_of_the_page_are_those_that_are_looked_for(roles: dict[str, str]) -> None:
    with store_as(roles["pgqrs_supervisor"]) as store, store.messages.database.reading() as tx:
        assert checking.lacking_grants(tx) == []
        held = tx.run("lacking_rights", [(t, p) for t in checking.OF_A_SUPERVISOR for p in ("select", "insert", "update", "delete")])  # fmt: skip
    assert held, "it has no more than it needs"
    assert {t for t, p in held if p == "delete"} == set(checking.OF_A_SUPERVISOR) - {"pgqrs_supervisors"}
