"""Statements on a connection of our own, past the driver's cursor: the same values, the same errors."""

import itertools
from datetime import UTC, datetime
from enum import IntEnum, StrEnum

import psycopg
import pytest

import pgqrs
from pgqrs.store.postgresql.prepared import PREPARE_AT, Prepared
from pgqrs.store.sql import _rendered
from pgqrs.store.store import COPY_MIN


@pytest.fixture
def connection(postgres_dsn):
    with psycopg.connect(postgres_dsn, autocommit=True) as made:
        yield made


def statement(text):
    return _rendered("x", text, "postgres", False)


ECHO = statement(
    "select cast(:n as bigint), cast(:f as float8), cast(:b as bool), cast(:t as text), cast(:at as timestamptz)"
)
AT = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)


def test_values_come_back_as_they_went(connection):
    prepared = Prepared(connection)
    ns = [0, -1, 2**31, 2**63 - 1, -(2**63), None]
    fs = [0.0, 1e-300, 0.1 + 0.2, float("inf"), None]
    ts = ["", "it's", 'a\\b\n"c" $1 %s %(x)s', "ü€𝄞", None]
    for n, f, t, b in itertools.product(ns, fs, ts, [True, False, None]):
        assert prepared.run(ECHO, {"n": n, "f": f, "b": b, "t": t, "at": AT}) == [(n, f, b, t, AT)]


class Word(StrEnum):
    ONE = "one"


class Seconds(float):
    def __repr__(self):
        return f"Seconds({float(self)})"


def test_subclasses_are_what_they_are_one_of(connection):
    values = {"n": IntEnum("Number", {"SEVEN": 7})(7), "f": Seconds(2.5), "b": None, "t": Word.ONE, "at": AT}
    assert Prepared(connection).run(ECHO, values) == [(7, 2.5, None, "one", AT)]


def test_a_statement_is_prepared_when_it_comes_again_and_for_each_kind_of_values(connection):
    prepared = Prepared(connection)
    known = "select count(*) from pg_prepared_statements where name like 'pgqrs%'"
    counts = []
    for value in (1, 2, 3, None, None):
        prepared.run(statement("select cast(:n as bigint)"), {"n": value})
        counts.append(connection.execute(known, prepare=False).fetchone()[0])
    assert counts == [0, 1, 1, 1, 2]


def test_a_parameter_that_stands_twice_is_one(connection):
    both = statement("select cast(:a as bigint) + :a, cast(:b as bigint) - :a")
    assert both.parameters == ("a", "b")
    assert Prepared(connection).run(both, {"b": 10, "a": 3}) == [(6, 7)]


def test_no_rows_and_no_answer_are_both_nothing(connection):
    prepared = Prepared(connection)
    assert prepared.run(statement("select 1 where false"), {}) == []
    assert prepared.run(statement("create temporary table t (a int)"), {}) == []


@pytest.mark.parametrize("times", range(1, PREPARE_AT + 2))
def test_the_servers_errors_are_the_drivers_and_leave_the_connection_usable(connection, times):
    prepared = Prepared(connection)
    divide = statement("select 1 / cast(:n as bigint)")
    for _ in range(times - 1):
        assert prepared.run(divide, {"n": 1}) == [(1,)]
    with pytest.raises(psycopg.errors.DivisionByZero, match="division by zero"):
        prepared.run(divide, {"n": 0})
    assert prepared.run(divide, {"n": 1}) == [(1,)]
    for _ in range(times):
        with pytest.raises(psycopg.errors.UndefinedTable):
            prepared.run(statement("select * from nowhere"), {})


def test_a_dead_link_is_an_operational_error(connection, postgres_dsn):
    prepared = Prepared(connection)
    me = prepared.run(statement("select pg_backend_pid()"), {})[0][0]
    with psycopg.connect(postgres_dsn, autocommit=True) as other:
        other.execute("select pg_terminate_backend(%s)", (me,))
    for _ in range(2):
        with pytest.raises(psycopg.OperationalError):
            prepared.run(statement("select pg_sleep(0.1)"), {})
    assert connection.closed


def test_a_value_of_another_kind_is_refused_before_anything_is_sent(connection):
    with pytest.raises(TypeError, match="takes no bytes"):
        Prepared(connection).run(statement("select :x"), {"x": b"bytes"})
    assert connection.execute("select 1").fetchone() == (1,)


@pytest.mark.parametrize("asked", ["latin1", "sql_ascii", "utf8"])
def test_text_is_utf8_whatever_encoding_the_dsn_asks_for(postgres_dsn, asked):
    dsn = f"{postgres_dsn}{'&' if '?' in postgres_dsn else '?'}client_encoding={asked}"
    with pgqrs.connect(dsn) as store:
        store.install()
        many = [f"é€𝄞 {n}" for n in range(COPY_MIN)]
        ids = store.enqueue_many("wörk", ["é€𝄞"]) + store.enqueue_many("wörk", many)
        assert [store.messages.message(i).payload for i in (ids[0], ids[1], ids[-1])] == [
            "é€𝄞", many[0], many[-1],
        ]  # fmt: skip
        assert store.messages.queues()[0].queue_name == "wörk"
