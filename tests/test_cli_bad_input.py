"""Whatever is wrong with a call: one message that begins with `pgqrs: `, the right exit code, and nothing half done."""

from pathlib import Path

import msgspec
import pytest

import pgqrs as library
from pgqrs.cli.commands import COMMANDS
from tests.cli_runner import FLOWS, Pgqrs

pytestmark = pytest.mark.backends("sqlite", "postgres")

USAGE, DATABASE = 2, 3
ON_A_DATABASE = {"runs": [], "queues": [], "workers": [], "dead": [], "run": [1], "cancel": [1], "resume": [1], "replay": [1],
                 "trigger": ["fourfold", 1], "enqueue": ["mails", 1], "verify": []}  # fmt: skip

# (arguments, what the message says)
CALLS = [
    (["nonsense"], "No such command 'nonsense'"),
    (["enqueue"], "Missing argument 'QUEUE'"),
    (["enqueue", "mails", "1", "2"], "unexpected extra argument"),
    (["enqueue", "mails", "1", "--soon"], "No such option"),
    (["stacks", "1"], "process 1 is neither a supervisor with workers nor one of them"),  # it has no parent
    # payloads
    (["enqueue", "mails", ""], "the payload is empty"),
    (["enqueue", "mails", "you@example.com"], "no valid JSON"),
    (["enqueue", "mails", "{'to': 1}"], "no valid JSON"),
    (["enqueue", "mails", '{"to":'], "no valid JSON"),
    (["enqueue", "mails", "1 2"], "no valid JSON"),
    (["enqueue", "mails", "NaN"], "no valid JSON"),
    (["enqueue", "mails", "Infinity"], "no valid JSON"),
    (["enqueue", "mails", "-1x"], "no valid JSON"),
    (["enqueue", "mails", "-Infinity"], "No such option"),
    (["enqueue", "mails", '{"to": "\\u0000"}'], "NUL"),
    (["enqueue", "mails", '"\\ud800"'], "surrogate"),
    (["enqueue", "mails", '"\udcff"'], "not UTF-8"),
    (["enqueue", "mails", "[" * 5000 + "]" * 5000], "nested too deeply"),
    (["enqueue", "mails", '"' + "x" * 2**20 + '"'], "over the limit of 1,048,576"),
    (["trigger", "fourfold", '"' + "x" * (2**20 - 5) + '"'], "over the limit of 1,048,576"),
    (["trigger", "fourfold", "NaN"], "no valid JSON"),
    (["trigger", "fourfold", '"\\u0000"'], "NUL"),
    # who is unknown
    (["enqueue", "nobody", "1"], "no queue is named 'nobody'"),
    (["trigger", "nobody", "1"], "no workflow is named 'nobody'"),
    (["trigger", "nobody", "1", "--wait"], "no workflow is named 'nobody'"),
    (["trigger", "mails", "1"], "no workflow is named 'mails'"),
    (["runs", "--workflow", "nobody"], "no workflow is named 'nobody'"),
    (["dead", "--queue", "nobody"], "no queue is named 'nobody'"),
    (["enqueue", "", "1"], "Invalid value for 'QUEUE'"),
    (["enqueue", "q" * 256, "1"], "Invalid value for 'QUEUE'"),
    (["trigger", "\udcff", "1"], "Invalid value for 'WORKFLOW'"),
    # ids
    *[([command, 4711], "has the id 4711") for command in ("run", "cancel", "resume", "replay")],
    *[([command, 2**63 - 1], "has the id 9223372036854775807") for command in ("run", "cancel", "resume", "replay")],
    *[([command, 2**63], "Invalid value for 'ID'") for command in ("run", "cancel", "resume", "replay")],
    (["run", "0"], "Invalid value for 'ID'"),
    (["run", "twelve"], "Invalid value for 'ID'"),
    # options
    (["enqueue", "mails", "1", "--delay", "soon"], "'soon' is no duration"),
    (["enqueue", "mails", "1", "--delay", "-1"], "'-1' is no duration"),
    (["enqueue", "mails", "1", "--delay", "nan"], "'nan' is no duration"),
    (["enqueue", "mails", "1", "--delay", "²"], "'²' is no duration"),
    (["enqueue", "mails", "1", "--delay", "101 years"], "is no duration"),
    (["trigger", "fourfold", "1", "--wait", "--timeout", "later"], "'later' is no duration"),
    (["trigger", "fourfold", "1", "--timeout", "1s"], "--timeout is for --wait"),
    (["runs", "--status", "fine"], "'fine' is not one of"),
    (["runs", "--limit", "0"], "0 is not in the range"),
    (["runs", "--limit", "1000000"], "1000000 is not in the range"),
    (["runs", "--schema", "a b"], "'a b' cannot name a schema"),
]  # fmt: skip

# (standard input, what the message says)
INPUTS = [
    (b"", "standard input, is empty"),
    (b"{", "no valid JSON"),
    (b"\xff", "not UTF-8"),
    (b'"' + b"x" * 2**20 + b'"', "over the limit of 1,048,576"),
    (b" " * (2**24 + 1), "over the limit of 1,048,576"),
]

# (DSN, exit code, what the message says)
DSNS = [
    ("", USAGE, "'' names no database"),
    ("pgqrs.db", USAGE, "'pgqrs.db' names no database"),
    ("mysql://me:sesame@host/db", USAGE, "'mysql://me:***@host/db' names no database"),
    ("sqlite://", USAGE, "names no SQLite file"),
    ("sqlite::memory:", USAGE, "an in-memory database is gone with its process"),
    ("sqlite:///tmp/x.db?mode=ro", USAGE, "asks SQLite for 'mode=ro'"),
    ("sqlite:///tmp/\udcff.db", USAGE, "not UTF-8"),
    ("turso://", USAGE, "names no Turso file"),
    ("turso://db?mode=ro", USAGE, "only ?experimental=multiprocess_wal is known"),
    ("s3://bucket", USAGE, "names no object of S3"),
    ("postgresql://me:sesame@localhost:1/db?colour=red", USAGE, "not a PostgreSQL DSN"),
    ("postgresql://me:sesame@localhost:1/db", DATABASE, "Connection refused"),
    ("postgresql://me:ses@me@127.0.0.1:1/db", DATABASE, "PostgreSQL: "),
    ("postgresql://me:sesame@nowhere.invalid/db", DATABASE, "nowhere.invalid"),
]


@pytest.fixture
def pgqrs(dsn, monkeypatch, capfd):
    return Pgqrs(dsn, monkeypatch, capfd)


@pytest.fixture
def known(pgqrs):
    """There is a workflow, `fourfold`, and a plain queue, `mails`, each with something on it."""
    with library.connect(pgqrs.dsn) as store:
        store.install()
        store.trigger("fourfold", 1)
        store.enqueue("mails", {"to": "you"})
    return pgqrs


@pytest.fixture
def here(monkeypatch, capfd, tmp_path):
    """In an empty folder, without a database."""
    monkeypatch.chdir(tmp_path)
    pgqrs = Pgqrs("sqlite://pgqrs.db", monkeypatch, capfd)
    monkeypatch.delenv("PGQRS_DSN")
    return pgqrs


def test_a_wrong_call_is_refused_and_changes_nothing(known):
    before = contents(known.dsn)
    wrong = [
        (args, complaint)
        for args, says in CALLS
        for complaint in complaints(known(*args), USAGE, says)
    ]  # fmt: skip
    assert wrong == []
    assert contents(known.dsn) == before


def test_wrong_standard_input_is_refused_and_changes_nothing(known):
    before = contents(known.dsn)
    wrong = [
        (stdin[:20], complaint)
        for stdin, says in INPUTS
        for complaint in complaints(known.process("enqueue", "mails", "-", stdin=stdin), USAGE, says)
    ]
    assert wrong == []
    assert contents(known.dsn) == before


@pytest.mark.parametrize("dsn_text, code, says", DSNS)
def test_a_wrong_dsn_is_told_without_its_password(here, dsn_text, code, says):
    for command in ("queues", "install"):
        ended = here(command, "--dsn", dsn_text)
        assert complaints(ended, code, says) == []
        assert "sesame" not in ended.err
        assert "ses@me" not in ended.err
    assert list_here() == []


def test_the_environment_may_be_wrong_as_well(here, monkeypatch):
    monkeypatch.setenv("PGQRS_DSN", "somewhere")
    assert complaints(here("queues"), USAGE, "'somewhere' names no database") == []


def test_commands_make_no_sqlite_database_by_looking_for_one(here):
    assert set(ON_A_DATABASE) == set(COMMANDS) - {"supervise", "demo", "install", "stacks"}
    for command, args in ON_A_DATABASE.items():
        ended = here(command, *args)
        assert complaints(ended, DATABASE, "there is no SQLite database at pgqrs.db") == []
    assert list_here() == []


def test_commands_leave_a_foreign_sqlite_database_as_it_is(here, tmp_path):
    (tmp_path / "pgqrs.db").touch()
    for command, args in ON_A_DATABASE.items():
        assert complaints(here(command, *args), DATABASE, "run: pgqrs install") == []


def test_what_is_no_sqlite_database_is_told(here, tmp_path):
    (tmp_path / "letter.db").write_text("Dear reader,\n" * 100)
    (tmp_path / "folder.db").mkdir()
    for path in ("letter.db", "folder.db", "missing/x.db", "letter.db/x.db"):
        for command in ("queues", "install"):
            assert complaints(here(command, "--dsn", f"sqlite://{path}"), DATABASE, path) == []
    assert list_here() == ["folder.db", "letter.db"]
    assert (tmp_path / "letter.db").read_text() == "Dear reader,\n" * 100


def test_a_postgres_schema_that_does_not_exist_is_told(postgres_dsn, here):
    for command in ("queues", "install"):
        assert (
            complaints(here(command, "--dsn", postgres_dsn, "--schema", "absent"), DATABASE, "schema") == []
        )


@pytest.mark.slow
@pytest.mark.parametrize("source, says", [
    ("import absent_module", "No module named 'absent_module'"),
    ("def f(:", "SyntaxError"),
    ("raise SystemExit(0)", "SystemExit"),
    ("import os; os._exit(7)", "exit code 7"),
    ("x = 1", "holds no workflow"),
])  # fmt: skip
def test_a_target_that_cannot_be_used_is_told(here, tmp_path, source, says):
    (tmp_path / "target.py").write_text(source + "\n")
    ended = here.process("supervise", "target.py", "--burst", "--workers", 1)
    assert ended.code == USAGE
    assert ended.err.startswith("pgqrs: ")
    assert "target.py" in ended.err
    assert says in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize("target, says", [
    ("absent.py", "no such file"),
    ("absent_module", "no module named 'absent_module'"),
    ("not a module", "neither a Python file nor a module's name"),
    (f"{FLOWS}:absent", "no workflow or handler named 'absent'"),
])  # fmt: skip
def test_a_target_that_is_not_there_is_told(here, target, says):
    assert complaints(here.process("supervise", target, "--burst"), USAGE, says) == []


# Around the tests


def complaints(ended, code, says):
    """What is wrong with how a command refused, as text."""
    found = []
    if ended.code != code:
        found.append(f"exit code {ended.code}, not {code}")
    if ended.out:
        found.append(f"printed {ended.out[:200]!r}")
    if not ended.err.startswith("pgqrs: ") or ended.err.count("\n") != 1 or len(ended.err) > 600:
        found.append(f"not a message of one line: {ended.err[:2000]!r}")
    if says not in ended.err:
        found.append(f"does not say {says!r}: {ended.err[:600]!r}")
    return found


def contents(dsn):
    """Everything that a wrong call could have changed."""
    with library.connect(dsn) as store:
        return msgspec.to_builtins(
            [store.queues(), store.runs(), store.consumers(stopped=True), store.dead()]
        )


def list_here():
    return sorted(str(p) for p in Path().iterdir())
