"""The command line as people and scripts use it, on each database."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

import pgqrs as library
from pgqrs.cli.commands import COMMANDS, cli
from pgqrs.flows.definitions import definitions_in
from pgqrs.model.states import WorkflowStatus
from pgqrs.store.migrations import VERSION
from tests import cli_flows
from tests.cli_flows import failing, fourfold, pausing
from tests.cli_runner import COMMAND, FLOWS, Pgqrs
from tests.crashes.supervised import connected
from tests.store.given import execute

NOBODY = "no supervisor takes runs of 'fourfold' at the moment; start one: pgqrs supervise …\n"

pytestmark = [pytest.mark.processes, pytest.mark.backends("sqlite", "postgres")]


@pytest.fixture
def pgqrs(dsn, monkeypatch, capfd):
    return Pgqrs(dsn, monkeypatch, capfd)


@pytest.fixture
def installed(pgqrs):
    assert pgqrs("install").code == 0
    return pgqrs


@pytest.fixture
def known(installed):
    """Every workflow and queue of tests/cli_flows.py is known, as once a supervisor was there."""
    with connected(installed.dsn) as store:
        for definition in definitions_in(cli_flows):
            if definition.kind == "workflow":
                store._ready().ensure_workflow(definition.name, definition.queue)
            else:
                store._ready().ensure_queue(definition.queue)
    return installed


@pytest.fixture
def store(installed):
    with connected(installed.dsn) as store:
        yield store


# Help


def test_help_lists_every_command_and_loads_neither_driver_nor_rich():
    ended = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "pgqrs", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    listed = re.findall(r"^  (\w+)  +\S", ended.stdout, re.MULTILINE)
    assert listed == list(COMMANDS)
    assert not re.search(r"\| +(psycopg|rich|sqlite3|greenlet)\b", ended.stderr)


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - {"supervise", "demo", "stacks"}))
def test_help_of_a_command_shows_an_example(command):
    text = CliRunner().invoke(cli, [command, "-h"]).stdout
    assert "--dsn" in text
    assert "--json" in text
    assert re.search(rf"Examples?:\n(.*\n)*? +.*pgqrs {command}", text)


# install and verify


def test_install_says_what_it_did_and_is_safe_to_repeat(pgqrs):
    assert re.fullmatch(r"installed: \d migrations, now at version \d\n", pgqrs("install").out)
    assert re.fullmatch(r"nothing to do: at version \d already\n", pgqrs("install").out)
    assert pgqrs("install", "--json").json == {"version": VERSION, "migrations": 0}


def test_verify_says_the_version(installed):
    assert installed("verify").out == f"complete, at version {VERSION}\n"
    assert installed("verify", "--json").json == {"version": VERSION}


@pytest.mark.parametrize("command", ["verify", "runs"])
def test_a_database_that_was_not_installed_is_an_error_with_the_remedy(pgqrs, command):
    ended = pgqrs(command)
    assert ended.code == 3
    assert "pgqrs install --dsn" in ended.err


@pytest.mark.parametrize(
    "damage, told",
    [
        ("alter table pgqrs_messages drop column dead_reason", "columns of the table pgqrs_messages are missing: dead_reason"),
        ("drop table pgqrs_supervisors", "the table pgqrs_supervisors is missing"),
        ("insert into pgqrs_migrations (version, name) values (9999, 'later')", "newer than this pgqrs knows"),
        ("delete from pgqrs_migrations where version > 1", f"is at version 1, this pgqrs needs {VERSION}; run: pgqrs install"),
    ],
)  # fmt: skip
def test_verify_names_what_is_wrong_with_a_schema(installed, damage, told):
    if "dead_reason" in damage:
        execute(installed.dsn, "drop index idx_pgqrs_messages_dead")
    execute(installed.dsn, damage)
    for command in ("verify", "queues"):
        ended = installed(command)
        assert ended.code == 3
        assert told in ended.err


# enqueue


def test_enqueue_prints_the_id_of_the_message_it_put(known, store):
    before = counts(store, "mails")
    plain = known("enqueue", "mails", '{"to": "you"}')
    as_json = known("enqueue", "mails", '{"to": "you"}', "--json").json
    assert as_json == {"id": int(plain.out) + 1}
    after = counts(store, "mails")
    assert after.ready == before.ready + 2


def test_enqueue_reads_standard_input(known, store):
    ended = known.process("enqueue", "mails", "-", "--delay", "1h", stdin=b' {"to": "nobody"}\n')
    assert ended.out.strip().isdigit(), ended.err
    assert counts(store, "mails").delayed == 1


def test_a_dead_message_is_listed_with_its_reason_and_replayed(known, store):
    message_id = int(known("enqueue", "mails", '{"to": "nobody"}').out)
    known.process("supervise", FLOWS, "--burst", "--workers", 1, "--max-read-ct", 1)
    [row] = known("dead", "--queue", "mails").lines[1:]
    assert re.match(rf" *{message_id}  mails  .*ValueError: no such address.*nobody", row)
    [document] = known("dead", "--json").json
    assert document["id"] == message_id
    assert document["payload"] == {"to": "nobody"}
    assert known("replay", message_id).out == f"message {message_id} is QUEUED\n"
    assert known("dead").out == ""
    assert counts(store, "mails").ready == 1
    assert known("cancel", message_id).out == f"message {message_id} is CANCELLED\n"


def test_a_step_whose_run_has_ended_is_not_shown_as_running(known, tmp_path):
    file = tmp_path / "flows.py"
    body = "@pgqrs.step\ndef kill(): os._exit(3)\n@pgqrs.workflow\ndef killing(): kill()\n"
    file.write_text("import os, pgqrs\n" + body)
    known.process("supervise", file, "--burst")  # makes the workflow known
    run = known("trigger", "killing").out.strip()
    known.process("supervise", file, "--burst", "--workers", 1)
    assert re.search(r"^ +1  kill  CRASHED ", known("run", run).out, re.MULTILINE)


def test_a_supervisor_warns_of_an_annotation_that_names_nothing(known, tmp_path):
    file = tmp_path / "flows.py"
    file.write_text("import pgqrs\n@pgqrs.workflow\ndef flow(x: 'Nothing') -> int: return 1\n")
    ended = known.process("supervise", file, "--burst")
    assert "warning: argument 'x' of flow() has an annotation that cannot be looked up" in ended.out
    assert (
        known.process("supervise", tmp_path, "--burst")
        .err.rstrip()
        .endswith("is a folder; name a file in it")
    )


def test_a_burst_says_what_it_leaves_for_later(known):
    known("trigger", "pausing", "1")
    ended = known.process("supervise", FLOWS, "--burst", "--workers", 1)
    assert ended.code == 0
    assert re.search(r"\d+ wait for their time, for a retry, a delay or the end of a pause", ended.out)
    assert "nothing more is due now; " in ended.out
    assert "nothing left to do" not in ended.out


# trigger


def test_trigger_prints_the_id_alone(known):
    first = known("trigger", "fourfold", "1")
    assert first.out.strip().isdigit()
    assert known("trigger", "fourfold", "1", "--json").json == {"id": int(first.out) + 1}
    assert known("run", int(first.out)).code == 0


def test_trigger_and_wait_prints_the_result_or_fails_as_the_run_does(known, store):
    with known.supervised():
        assert known("trigger", "fourfold", "3", "--wait").json == 12
        assert known("trigger", "fourfold", "-3", "--wait", "--timeout", "1m").json == -12
        failed = known("trigger", "failing", "3", "--wait")
        assert (failed.code, failed.out) == (1, "")
        assert "failed: builtins.ValueError: cannot take 6" in failed.err
        misfit = known("trigger", "fourfold", '"three"', "--wait")
        assert misfit.code == 1
        assert "argument 'x' of fourfold() does not fit its annotation int" in misfit.err
        unspeakable = known("trigger", "unspeakable", "--wait")
        assert unspeakable.code == 1
        assert "the result of workflow 'unspeakable' cannot be stored as JSON" in unspeakable.err
        # On S3 a run is begun, and paused, by a PUT each.
        patience = "5s" if store.config.backend == "s3" else "500ms"
        late = known("trigger", "pausing", "3", "--wait", "--timeout", patience)
        assert (late.code, late.out) == (1, "")
        assert f"is still PAUSED after {patience}" in late.err
        assert "Traceback" not in failed.err + misfit.err + unspeakable.err + late.err


def test_a_wait_ends_with_the_run_that_somebody_cancels(known, store):
    process = subprocess.Popen(
        [*COMMAND, "trigger", "fourfold", "1", "--wait"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    run = the_run_when_there(store)
    assert known("cancel", run).out == f"run {run} is CANCELLED\n"
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (1, "")
    assert err == f"{NOBODY}pgqrs: run {run} was cancelled\n"


def test_ctrl_c_ends_the_wait_and_not_the_run(known, store):
    process = subprocess.Popen(
        [*COMMAND, "trigger", "fourfold", "1", "--wait"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    run = the_run_when_there(store)
    time.sleep(0.1)  # the id is committed a moment before the wait begins
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert err == f"{NOBODY}pgqrs: run {run} goes on; see: pgqrs run {run}\n"
    assert store.run(run).status == WorkflowStatus.Queued


@pytest.mark.slow
def test_a_wait_survives_a_cut_connection(postgres_dsn, monkeypatch, capfd):
    pgqrs = Pgqrs(postgres_dsn, monkeypatch, capfd)
    with library.connect(postgres_dsn) as store:
        store.install()
        store.trigger(fourfold, 1).cancel()
        process = subprocess.Popen(
            [*COMMAND, "trigger", "fourfold", "1", "--wait"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        while len(store.runs()) < 2:
            time.sleep(0.02)
    time.sleep(0.3)
    execute(
        pgqrs.dsn,
        "select pg_terminate_backend(pid) from pg_stat_activity "
        "where datname = current_database() and pid <> pg_backend_pid()",
    )
    time.sleep(0.5)
    assert process.poll() is None
    with library.connect(postgres_dsn) as store:
        store.run(2).cancel()
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (1, "")
    assert err == f"{NOBODY}pgqrs: run 2 was cancelled\n"


# runs and run


def test_runs_are_listed_newest_first_and_filtered(known, store):
    ids = [store.trigger(fourfold, i).id for i in range(3)] + [store.trigger(failing, 1).id]
    known.work_off()
    assert [r["message_id"] for r in known("runs", "--json").json] == ids[::-1]
    assert [r["id"] for r in known("runs", "--workflow", "fourfold", "--limit", 2, "--json").json] == [
        ids[2],
        ids[1],
    ]
    [row] = known("runs", "--status", "error").lines[1:]
    assert row.split()[:3] == [str(ids[3]), "failing", "ERROR"]
    assert "ValueError: cannot take 2 nor more" in row
    empty = known("runs", "--status", "paused")
    assert (empty.code, empty.out, empty.err) == (0, "", "no runs like that\n")


def test_what_is_piped_is_neither_cut_to_a_width_nor_coloured(known, store, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "20")
    name = "a_long_name_" * 10
    run = store.trigger(name, {"x": "y" * 30}).id
    header, row = known("runs").lines
    assert row.split() == [str(run), name, "QUEUED", "now", '{"x":"%s"}' % ("y" * 30)]
    assert "\x1b" not in header + row


def test_a_run_shows_its_steps(known, store):
    run = store.trigger(fourfold, 3).id
    known.work_off()
    text = known("run", run).out
    assert text.startswith(f"run {run} of fourfold: SUCCESS\n  input     3\n")
    assert re.search(r"^  result    12$", text, re.MULTILINE)
    assert re.search(r"^ +1  double    SUCCESS .* 6$", text, re.MULTILINE)
    assert re.search(r"^ +2  double#2  SUCCESS .* 12$", text, re.MULTILINE)
    document = known("run", run, "--json").json
    assert (document["id"], document["status"], document["output"], document["attempt"]) == (
        run,
        "SUCCESS",
        12,
        1,
    )
    assert [(s["step_name"], s["output"], s["run_id"]) for s in document["steps"]] == [
        ("double", 6, run),
        ("double#2", 12, run),
    ]
    assert document["started_at"] < document["completed_at"]


def test_a_run_that_failed_shows_why_and_is_replayed(known, store):
    run = store.trigger(failing, 3).id
    known.work_off()
    text = known("run", run).out
    assert "  error     ValueError: cannot take 6 nor more\n" in text
    assert re.search(r"^ +2  refuse  ERROR .*ValueError: cannot take 6 nor more$", text, re.MULTILINE)
    assert "in refuse\n" in text
    assert "\n  ValueError: cannot take 6\n  nor more\n" in text
    assert known("cancel", run).err == f"pgqrs: run {run} has ended already, with ERROR\n"
    assert known("run", run, "--json").json["attempt"] == 1
    assert known("replay", run).out == f"run {run} is QUEUED\n"
    assert known("run", run, "--json").json["attempt"] == 0, "attempts are counted from zero again"
    again = known("replay", run)
    assert (again.code, again.err) == (
        1,
        f"pgqrs: run {run} is QUEUED; only a run in ERROR can be replayed\n",
    )


def test_a_run_tells_what_it_waits_for(known, store):
    paused, asking = store.trigger(pausing, 3).id, store.trigger("asking", 3).id
    known.work_off()
    queued, delayed = store.trigger(fourfold, 1).id, store.enqueue("fourfold", {"input": 1}, delay="1h")
    assert (
        f"waits     to be resumed: pgqrs resume {paused}\n  paused    for a signature\n"
        in known("run", paused).out
    )
    text = known("run", asking).out
    assert re.search(r"waits     to try ask again, until ....-..-.. ..:..:.. \(in (59m \d+s|1h)\)\n", text)
    assert re.search(r"^ +1  ask   RETRY .* 1 +ConnectionError: nobody there$", text, re.MULTILINE)
    assert "waits     for a worker\n" in known("run", queued).out
    assert re.search(r"waits     until ....-..-.. ..:..:.. \(in (59m \d+s|1h)\)\n", known("run", delayed).out)
    assert "until resumed" in known("runs", "--workflow", "pausing").out


def test_resume_ends_a_pause_once(known, store):
    run = store.trigger(pausing, 3).id
    known.work_off()
    assert known("resume", run).out == f"run {run} is due now\n"
    known.work_off()
    assert known("run", run, "--json").json["output"] == 6
    again = known("resume", run)
    assert (again.code, again.err) == (1, f"pgqrs: run {run} is SUCCESS, not PAUSED\n")


def test_a_run_tells_how_its_worker_died(known, store, tmp_path):
    run = store.trigger("dying", str(tmp_path / "evidence")).id
    known.work_off()
    text = known("run", run).out
    assert f"run {run} of dying: SUCCESS" in text
    assert re.search(r"crashes   .*SIGKILL", text)
    [step] = known("run", run, "--json").json["steps"]
    assert step["crash_count"] == 1
    assert step["crash"]["signal"] == "SIGKILL"


def test_a_plain_message_is_no_run(known):
    message_id = int(known("enqueue", "mails", '{"to": "you"}').out)
    ended = known("run", message_id)
    assert ended.code == 2
    assert f"{message_id} is a plain message, not a run" in ended.err


# queues and workers


def test_queues_say_how_many_messages_stand_where(known, store):
    store.trigger(fourfold, 1)
    store.enqueue("mails", {"to": "you"}, delay="1h")
    table = {line.split()[0]: line.split()[1:] for line in known("queues").lines}
    assert table["queue"] == ["workflow", "ready", "delayed", "held", "archived", "dead"]
    assert table["fourfold"] == ["fourfold", "1", "0", "0", "0", "0"]
    assert table["mails"] == ["0", "1", "0", "0", "0"]
    document = {q["queue_name"]: q for q in known("queues", "--json").json}
    assert (document["mails"]["delayed"], document["mails"]["workflow"]) == (1, None)


def test_workers_are_consumers_with_their_supervisor_and_its_lease(known):
    assert known("workers").out == ""
    with known.supervised() as supervisor:
        rows = [line.split() for line in known("workers").lines[1:]]
        assert {row[1] for row in rows} == {
            "asking",
            "dying",
            "failing",
            "fourfold",
            "mails",
            "pausing",
            "unspeakable",
        }
        assert {row[4] for row in rows} == {str(supervisor.pid)}
        assert all(re.search(r"ends in [12]\ds$", " ".join(row)) for row in rows)
        [document] = [w for w in known("workers", "--json").json if w["queue_name"] == "mails"]
        assert document["pid"] == supervisor.pid
        assert document["host"]
    assert known("workers").err == "nobody takes messages; start a supervisor: pgqrs supervise pipeline.py\n"
    assert len(known("workers", "--all").lines) == 8


# Output


def test_whatever_data_holds_cannot_steer_the_terminal(known, store):
    run = store.trigger("esc\x1b[31m", "\x1b]0;title\x07\u202e").id
    out = known("runs").out + known("run", run).out
    assert not re.search(r"[\x1b\x07\u202e]", out)


def test_a_reader_that_goes_away_ends_the_command_in_silence(known, store):
    store.trigger_many("long" * 50, [((i,), {}) for i in range(500)])  # more than fits into a pipe
    for more in ([], ["--json"]):
        with subprocess.Popen(
            [*COMMAND, "runs", "--limit", "500", *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            process.stdout.close()
            assert process.stderr is not None
            assert process.stderr.read() == b""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_output_that_cannot_be_written_is_an_error_of_one_line(known):
    with open("/dev/full", "wb") as full:
        ended = subprocess.run([*COMMAND, "queues"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (ended.returncode, ended.stderr) == (1, "pgqrs: [Errno 28] No space left on device\n")


def test_a_terminal_of_another_encoding_shows_what_it_can(known, store):
    run = store.trigger("überall", "→").id
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    ended = subprocess.run([*COMMAND, "run", str(run)], env=environment, capture_output=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.decode("latin-1").startswith(f'run {run} of überall: QUEUED\n  input     "\\u2192"\n')


# Around the tests


def counts(store, queue):
    [found] = [q for q in store.queues() if q.queue_name == queue]
    return found


def the_run_when_there(store):
    deadline = time.monotonic() + 30
    while not (runs := store.runs()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return runs[0].message_id
