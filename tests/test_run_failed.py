"""What a failed run's caller is told: one line, the exception that it was as the cause, and the traceback beside it."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import msgspec
import pytest

import pgqrs
from pgqrs import errors
from pgqrs.clients.handle import _failure
from pgqrs.manual import runs
from pgqrs.model.states import WorkflowStatus
from pgqrs.store.runs_by_hand import RunRow
from pgqrs.store.store import Settled


class NoStock(Exception):
    def __init__(self, *, item):
        super().__init__(f"no {item}")
        self.item = item


def described(exc):
    try:
        raise exc
    except Exception as e:
        return msgspec.json.encode(errors.describe(e))


def failure(error):
    return _failure(7, Settled(WorkflowStatus.Error, None, error, True, None))


def test_a_failed_run_s_error_has_the_exception_as_its_cause_and_no_traceback_in_its_text():
    failed = failure(described(NoStock(item="bolts")))
    assert str(failed) == f"run 7 failed: {__name__}.NoStock: no bolts; its steps: pgqrs run 7"
    assert type(failed.__cause__) is NoStock
    assert failed.__cause__.item == "bolts"
    assert "in described" in failed.__cause__.__notes__[0]
    assert failed.error["message"] == "no bolts"


@pytest.mark.parametrize(
    "error",
    [
        'Traceback (most recent call last):\n  File "x.py", line 1, in f\nValueError: bad\n',
        {
            "code": "X",
            "message": 'it failed:\nTraceback (most recent call last):\n  File "x.py"\nValueError: bad',
        },
        {
            "type": "mod.Error",
            "message": 'Traceback (most recent call last):\n  File "x.py"\nValueError: bad',
        },
    ],
)
def test_a_traceback_that_was_recorded_as_the_message_is_a_note(error):
    failed = failure(json.dumps(error).encode())
    assert "Traceback" not in str(failed)
    assert "ValueError: bad; its steps: pgqrs run 7" in str(failed)


def test_an_error_without_a_type_is_told_as_before():
    failed = failure(b'{"code":"CRASHED","message":"died","traceback":"stacks"}')
    assert str(failed) == "run 7 failed: error: died; its steps: pgqrs run 7"
    assert failed.__notes__ == ["stacks"]
    assert failed.__cause__ is None
    assert str(failure(b'"just text"')) == "run 7 failed: just text; its steps: pgqrs run 7"
    assert str(failure(None)) == "run 7 failed: no reason recorded; its steps: pgqrs run 7"


def test_the_error_of_a_run_that_is_waited_for_as_in_0_15_is_what_0_15_records_and_the_type():
    state = RunRow(3, 1, 7, WorkflowStatus.Error, None, None, described(NoStock(item="bolts")))
    with pytest.raises(pgqrs.PgqrsError) as failed:
        runs.result_of(state)
    told = str(failed.value).removeprefix("Workflow run 7 failed: ").removesuffix("; its steps: pgqrs run 7")
    assert json.loads(told) == {
        "code": "NON_RETRYABLE",
        "is_transient": False,
        "type": f"{__name__}.NoStock",
        "message": "no bolts",
    }
    assert "in described" in failed.value.__notes__[0]
    by_hand = RunRow(3, 1, 7, WorkflowStatus.Error, None, None, b'"what the caller said"')
    with pytest.raises(pgqrs.PgqrsError, match='failed: "what the caller said"; its steps: pgqrs run 7'):
        runs.result_of(by_hand)


SCRIPT = """
    import dataclasses, datetime, sys, zoneinfo
    import pgqrs

    class NoStock(Exception):
        def __init__(self, *, item):
            super().__init__(f"no {item}")
            self.item = item

    @dataclasses.dataclass
    class Order:
        item: str
        at: datetime.datetime

    @pgqrs.step
    def reserve(order: Order) -> Order:
        raise NoStock(item=order.item)

    @pgqrs.step
    def passed(order: Order) -> Order:
        return order

    @pgqrs.workflow
    def buy(order: Order) -> str:
        order = passed(order)
        try:
            reserve(order)
        except NoStock as e:
            return f"{e.item} {order.at + datetime.timedelta(days=1)}"
        return "bought"

    @pgqrs.workflow
    def fail(order: Order) -> str:
        reserve(order)
        return "bought"

    if __name__ == "__main__":
        noon = datetime.datetime(2024, 3, 30, 12, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin"))
        order = Order("bolts", noon)
        with pgqrs.connect(sys.argv[1]) as store, store.workers(buy, fail, processes=1):
            print(store.trigger(buy, order).result(timeout=30))
            try:
                store.trigger(fail, order).result(timeout=30)
            except pgqrs.RunFailedError as e:
                print(type(e.__cause__) is NoStock, e.__cause__.item)
"""


def test_an_exception_class_of_a_script_is_caught_in_its_workers_and_by_its_caller(tmp_path):
    (tmp_path / "shop.py").write_text(textwrap.dedent(SCRIPT))
    done = subprocess.run(
        [sys.executable, "shop.py", f"sqlite://{tmp_path}/x.db"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(errors.__file__).parent.parent)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    printed = [line for line in done.stdout.splitlines() if not line.startswith("error: ")]
    assert printed == ["bolts 2024-03-31 12:00:00+02:00", "True bolts"], done.stdout + done.stderr
