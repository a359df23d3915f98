"""pgqrs 0.15.3, our supervisor and our library consume one queue at once, and no message is handled twice."""

import contextlib
import json
from collections import Counter
from pathlib import Path

import pytest

import pgqrs
from tests.crashes.supervised import Supervised, eventually
from tests.interop.conftest import OURS, Program

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PROGRAMS = Path(__file__).with_name("programs.py")
TARGET = str(Path(__file__).with_name("supervised_here.py")) + ":handle"
MESSAGES = 10_000


def test_no_message_is_handled_twice(
    postgres_dsn: str, python_0_15: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evidence = tmp_path / "evidence"
    monkeypatch.setenv("PGQRS_TEST_EVIDENCE", str(evidence))
    with pgqrs.connect(postgres_dsn) as store:
        store.install()
        store.queue("tasks")
        with Program(
            python_0_15, PROGRAMS, postgres_dsn, "enqueue", "tasks", str(MESSAGES // 2)
        ) as enqueuing:
            ids = store.enqueue_many("tasks", range(MESSAGES // 2))
            ids += json.loads(enqueuing.said())
        with contextlib.ExitStack() as running:
            consumers = [
                running.enter_context(
                    Program(python, PROGRAMS, postgres_dsn, "consume", who, str(evidence), keeping)
                )
                for who, python, keeping in (
                    ("first-0.15.3", python_0_15, "as-it-is"),
                    ("second-0.15.3", python_0_15, "as-it-is"),
                    ("library", OURS, "keeping"),
                )
            ]
            options = ("--workers", "4", "--lease", "2s", "--quiet")
            supervisor = running.enter_context(
                Supervised(postgres_dsn, tmp_path / "log", *options, target=TARGET)
            )
            assert [json.loads(c.said(100)) for c in consumers] == [0, 0, 0], "archivings were refused"
            eventually(lambda: store.queues()[0].archived == MESSAGES, what=supervisor.said())
        [queue] = store.queues()
    handled = [line.split() for line in evidence.read_text().splitlines()]
    twice = {i: n for i, n in Counter(int(i) for _, i in handled).items() if n > 1}
    assert not twice
    assert sorted(int(i) for _, i in handled) == sorted(ids)
    assert (queue.archived, queue.dead) == (MESSAGES, 0)
    assert {who for who, _ in handled} == {"first-0.15.3", "second-0.15.3", "library", "supervised"}
