"""Which record belongs to which call of a replay."""

import pytest

import pgqrs
from pgqrs.errors import ReplayMismatchError
from pgqrs.flows.flow import Refused, Suspended
from pgqrs.flows.history import History, Names, step_of
from pgqrs.model.bounds import NAME_CHARS_MAX
from pgqrs.model.states import WorkflowStatus
from pgqrs.model.writes import Place, RecordedStep
from tests.test_flow import Journal, run

charged = []


@pytest.fixture(autouse=True)
def nothing_charged():
    charged.clear()


@pgqrs.step
def charge(customer):
    charged.append(customer)
    return f"receipt of {customer}"


@pgqrs.step(compare=False)
def stamped(at):
    charged.append(at)
    return f"at {at}"


@pgqrs.step
def other(x=0):
    charged.append(x)
    return x


def recorded(workflow):
    """What is recorded when the workflow runs for the first time."""
    rows = run(workflow)[1].recorded()
    charged.clear()
    return list(rows)


# Equal calls


def test_a_walk_in_another_order_gives_each_its_own_result_and_runs_nothing():
    names = ["ann", "bob", "cy"]

    @pgqrs.workflow
    def work():
        return {name: charge(name) for name in names}

    rows = recorded(work)
    names.reverse()
    result, _ = run(work, *rows)
    assert result == b'{"cy":"receipt of cy","bob":"receipt of bob","ann":"receipt of ann"}'
    assert charged == []


def test_a_walk_in_another_order_goes_on_when_all_that_was_recorded_has_been_called():
    names = ["ann", "bob"]

    @pgqrs.workflow
    def work():
        return [charge(name) for name in names]

    rows = recorded(work)
    names[:] = ["bob", "ann", "cy"]
    result, journal = run(work, *rows)
    assert result == b'["receipt of bob","receipt of ann","receipt of cy"]'
    assert charged == ["cy"]
    assert [s.name for s in journal.steps] == ["charge#3"]


def test_a_walk_in_another_order_that_meets_a_new_member_too_early_is_refused_before_its_body():
    names = ["ann", "bob"]

    @pgqrs.workflow
    def work():
        return [charge(name) for name in names]

    rows = recorded(work)[:1]
    names.reverse()
    with pytest.raises(Refused, match="'charge' was recorded with other arguments"):
        run(work, *rows)
    assert charged == []


def test_equal_calls_get_their_results_in_the_order_in_which_they_were_made():
    numbers = iter(range(10))

    @pgqrs.step
    def draw():
        return next(numbers)

    @pgqrs.workflow
    def work():
        return [draw(), draw(), draw()]

    rows = recorded(work)
    assert run(work, *reversed(rows))[0] == b"[0,1,2]"


# Changed arguments


def test_changed_arguments_are_refused_and_the_error_shows_both_and_the_way_out():
    customer = "ann"

    @pgqrs.workflow
    def work():
        return charge(customer)

    rows = recorded(work)
    customer = "bob"
    with pytest.raises(Refused) as refused:
        run(work, *rows)
    then, now = (f"{n & (2**64 - 1):016x}" for n in (rows[0].place.fingerprint, fingerprint_of("bob")))
    for part in ("'bob'", "'charge'", then, now, "compare=False"):
        assert part in str(refused.value)
    assert charged == []


def fingerprint_of(*arguments):
    from pgqrs.values.fingerprint import Fingerprints

    return Fingerprints(b"42").of(arguments)


def test_a_step_whose_arguments_are_not_compared_finds_its_record_by_its_order():
    at = iter("abcd")

    @pgqrs.workflow
    def work():
        return [stamped(next(at)), stamped(next(at))]

    rows = recorded(work)
    assert [s.place.fingerprint for s in rows] == [None, None]
    assert run(work, *rows)[0] == b'["at a","at b"]'
    assert charged == []


def test_keywords_and_positions_are_one_call():
    by_keyword = False

    @pgqrs.workflow
    def work():
        return charge(customer="ann") if by_keyword else charge("ann")

    rows = recorded(work)
    by_keyword = True
    assert run(work, *rows)[0] == b'"receipt of ann"'


def test_a_pure_step_may_run_at_any_time():
    @pgqrs.step(pure=True)
    def look(x):
        return x

    first = True

    @pgqrs.workflow
    def work():
        if not first:
            look(1)
        return charge("ann")

    rows = recorded(work)
    first = False
    assert run(work, *rows)[0] == b'"receipt of ann"'


def test_an_error_in_an_arguments_repr_does_not_hide_the_mismatch():
    class Odd:
        def __repr__(self):
            raise RuntimeError

    history = History([RecordedStep("a", 0, "SUCCESS", b"1", None, 0, Place("", 0, 1), 1)], True)
    with pytest.raises(ReplayMismatchError, match="other arguments"):
        history.find("a", Place("", 0, 2), arguments=(Odd(),))


# Names


def test_names_are_numbered_by_task_and_never_given_twice():
    names = Names(["a", "a#2", "a#branch.1/1"])
    assert [names.new("a", "") for _ in range(3)] == ["a#3", "a#4", "a#5"]
    assert [names.new("a", "branch.1") for _ in range(2)] == ["a#branch.1/2", "a#branch.1/3"]
    assert names.new("b", "") == "b"


def test_a_name_with_a_long_path_still_fits_into_its_column_and_is_still_its_steps():
    names = Names([])
    long = names.new("s" * 200, "/".join(f"branch.{i}" for i in range(60)))
    other = names.new("s" * 200, "/".join(f"branch.{i}" for i in range(61)))
    assert len(long) <= NAME_CHARS_MAX
    assert long != other
    assert step_of(long) == "s" * 200


@pytest.mark.parametrize("name", ["a#2", "#", "a#"])
def test_the_sign_that_numbers_calls_cannot_be_in_a_steps_name(name):
    with pytest.raises(pgqrs.ValidationError, match="numbers the calls"):
        pgqrs.step(name=name)(lambda: 1)


# Runs of older versions


def old(name, position, output=b"1", status="SUCCESS"):
    return RecordedStep(name, position, status, output, None, 0)


def test_a_plain_run_of_an_older_version_finishes_by_the_order_it_recorded():
    @pgqrs.workflow
    def work():
        return [charge("ann"), charge("bob"), charge("cy")]

    result, journal = run(work, old("charge", 0, b'"A"'), old("charge#2", 1, b'"B"'))
    assert result == b'["A","B","receipt of cy"]'
    assert [(s.name, s.place.count) for s in journal.steps] == [("charge#3", 2)]


def test_a_plain_run_of_an_older_version_takes_no_other_order():
    @pgqrs.workflow
    def work():
        return [other(), charge("ann")]

    with pytest.raises(Refused, match="step 1 of this run is now 'other', but 'charge' was recorded"):
        run(work, old("charge", 0), old("other", 1))
    assert charged == []


def test_the_key_of_a_step_stays_what_it_was_in_a_run_of_an_older_version():
    keys = []

    @pgqrs.step
    def pay(amount):
        keys.append(pgqrs.current_run().key)

    @pgqrs.workflow
    def work():
        other()
        pay(1)
        pay(2)

    run(work, old("other", 0))
    assert keys == ["work/42/pay", "work/42/pay#2"]


# Keys


def test_a_steps_key_follows_from_its_arguments_and_not_from_the_order():
    names = ["ann", "bob"]
    keys = {}

    @pgqrs.step
    def pay(customer):
        keys.setdefault(customer, set()).add(pgqrs.current_run().key)

    @pgqrs.workflow
    def work():
        for name in names:
            pay(name)
        pay("ann")

    run(work)
    names.reverse()
    run(work)
    assert {c: len(k) for c, k in keys.items()} == {"ann": 2, "bob": 1}
    assert not keys["ann"] & keys["bob"]


# Suspension


def test_a_run_that_was_told_to_leave_is_never_a_success_whatever_its_function_makes_of_that():
    class Stopped(Journal):
        def begin(self, call):
            raise Suspended

    def bare():
        try:
            charge("ann")
        except:  # noqa: E722
            return "done"

    def raising():
        try:
            charge("ann")
        except BaseException:
            raise ValueError from None

    for function in (bare, raising):
        with pytest.raises(Suspended):
            run(pgqrs.workflow(function), journal=Stopped())


class Panic(BaseException):
    """As a library that is written in Rust raises it."""


@pytest.mark.parametrize("error", [Panic, GeneratorExit, KeyboardInterrupt, SystemExit])
def test_whatever_a_step_raises_fails_the_step(error):
    @pgqrs.step
    def breaks():
        raise error("no")

    @pgqrs.workflow
    def work():
        try:
            breaks()
        except BaseException:
            return "handled"

    result, journal = run(work)
    assert result == b'"handled"'
    assert [s.status for s in journal.steps] == [WorkflowStatus.Error]


def test_whatever_a_workflow_raises_ends_its_run():
    @pgqrs.workflow
    def work():
        raise Panic("no")

    with pytest.raises(Refused):
        run(work)


def test_a_key_names_the_database():
    keys = []

    @pgqrs.step
    def pay(amount):
        keys.append(pgqrs.current_run().key)

    @pgqrs.workflow
    def work():
        pay(1)

    for database in ("one", "other"):
        run(work, database=database)
    assert [k.partition("/")[0] for k in keys] == ["one", "other"]
    assert keys[0].partition("/")[2] == keys[1].partition("/")[2]
