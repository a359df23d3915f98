"""A worker whose code waits for another run: it says so, and hears the supervisor though its hub has not its turn."""

import time

import pytest

import pgqrs
from pgqrs.flows import flow
from supervisors import wire
from tests.test_worker import Pipe, first, note, nothing_ran, ran, second  # noqa: F401  # a fixture


def wait_for_ever():
    told = flow.waits()
    assert told is not None
    told.waits(9, "child", True)
    try:
        while True:
            told.look()
            time.sleep(0.001)
    finally:
        told.waited()


@pgqrs.workflow
def waits_in_its_own_code():
    first()
    wait_for_ever()


@pgqrs.step
def waiting_step():
    wait_for_ever()


@pgqrs.workflow
def waits_in_a_step():
    waiting_step()


@pgqrs.handler(queue="q")
def waits_in_a_handler(x: int | None):
    wait_for_ever()


ALL = [waits_in_its_own_code, waits_in_a_step, waits_in_a_handler]


def begin(pipe, function):
    pipe.execute(function, 1, payload=b"null" if function is waits_in_a_handler else b'{"input": null}')
    assert pipe.until(wire.Waiting)[-1] == wire.Waiting(1, 1, 9, "child", True)


@pytest.mark.parametrize("function", ALL)
def test_a_wait_that_could_never_end_is_an_error_in_the_code_that_waits(function):
    with Pipe(function) as pipe:
        begin(pipe, function)
        pipe.send(wire.WaitRefused(1, 2, "another claim's"), wire.WaitRefused(1, 1, "1 waits for 9"))
        assert pipe.next() == wire.Waiting(1, 1)
        told = pipe.until_idle()[-1]
        assert isinstance(told, wire.Failed)
        assert (b"InternalError" in told.error, b"1 waits for 9" in told.error) == (True, True)


@pytest.mark.parametrize("function", ALL)
def test_a_run_that_waits_is_stopped_where_it_waits(function):
    with Pipe(function) as pipe:
        begin(pipe, function)
        pipe.send(wire.Cancel(1, 1))
        assert pipe.until_idle() == [wire.Waiting(1, 1), wire.Returned((1,))]


def test_a_commit_that_is_heard_while_a_run_waits_does_not_let_it_go_on_twice():
    with Pipe(waits_in_its_own_code) as pipe:
        begin(pipe, waits_in_its_own_code)
        pipe.send(wire.Committed(((1, 1),)), wire.Cancel(1, 1))
        assert pipe.until_idle() == [wire.Waiting(1, 1), wire.Returned((1,))]
        pipe.send(wire.Revoke(1))
        assert pipe.until_idle() == [wire.Returned(())]
    assert ran == [(1, "first")]


def test_a_worker_whose_run_waits_gives_back_what_it_has_not_begun():
    with Pipe(waits_in_a_step) as pipe:
        begin(pipe, waits_in_a_step)
        pipe.execute(waits_in_a_step, 2, 3)
        pipe.send(wire.Revoke(2))
        assert pipe.next() == wire.Returned((2, 3))
        pipe.send(wire.Cancel(1, 1))
        pipe.until_idle()


def test_nobody_is_told_outside_a_run():
    assert flow.waits() is None
