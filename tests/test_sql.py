"""The statements: named, each once, rendered for each database, and every parameter accounted for."""

import re
import sqlite3

import pytest

from pgqrs.store import sql

NAMES = sorted(sql._sources())


@pytest.mark.parametrize("dialect", ["postgres", "sqlite"])
@pytest.mark.parametrize("own_clock", [False, True])
def test_every_statement_can_be_rendered(dialect, own_clock):
    for name in NAMES:
        rendered = sql.statement(name, dialect, own_clock).sql
        assert rendered, name
        assert not re.search(r"\{\w", rendered), f"{name} keeps a word in braces"
        assert "--" not in rendered
        assert not rendered.endswith(";")


def test_postgres_gets_no_colon_parameters_and_sqlite_no_percent():
    for name in NAMES:
        assert not re.search(r"(?<![:\w]):[a-z]", sql.statement(name, "postgres").sql), name
        assert "%(" not in sql.statement(name, "sqlite").sql, name


def test_a_cast_is_no_parameter():
    assert sql._rendered("x", "select a::text, :b", "postgres", False).sql == "select a::text, %(b)s"


def test_rows_become_arrays_on_postgres_and_json_on_sqlite():
    source = "select r.a from {rows: a bigint, b json}"
    on_postgres = sql._rendered("x", source, "postgres", False)
    assert on_postgres.columns == (("a", "bigint"), ("b", "json"))
    assert "unnest(%(a)s::bigint[], %(b)s::text[])" in on_postgres.sql
    assert "b::jsonb as b" in on_postgres.sql
    assert "json_each(:rows)" in sql._rendered("x", source, "sqlite", False).sql


@pytest.mark.parametrize(
    ("word", "on_postgres"),
    [
        ("{lock m}", "for no key update of m"),
        ("{lock m skip}", "for no key update of m skip locked"),
        ("{lock m to delete}", "for update of m"),
        ("{lock m to delete skip}", "for update of m skip locked"),
        ("{keep m}", "for key share of m"),
    ],
)
def test_locks_are_postgres_alone(word, on_postgres):
    assert sql._rendered("x", word, "postgres", False).sql == on_postgres
    assert sql._rendered("x", word, "sqlite", False).sql == ""


def test_a_word_that_nobody_knows_is_an_error():
    for dialect in ("postgres", "sqlite"):
        with pytest.raises(KeyError):
            sql._rendered("x", "{what}", dialect, False)


def test_seconds_from_now_mean_the_same_to_sqlite():
    later = sql._rendered("x", "select {now + :s}, {now - :s}", "sqlite", False).sql

    def run(seconds):
        now = {"now": "2024-05-17 12:00:00.000", "s": seconds}
        return sqlite3.connect(":memory:").execute(later, now).fetchone()

    assert run(1.5) == ("2024-05-17 12:00:01.500", "2024-05-17 11:59:58.500")
    assert run(0) == ("2024-05-17 12:00:00.000",) * 2
    assert run(86_400.0) == ("2024-05-18 12:00:00.000", "2024-05-16 12:00:00.000")
    assert run(1e-7) == ("2024-05-17 12:00:00.000", run(1e-7)[1])
    assert run(None) == (None, None)


def test_a_statement_that_nobody_wrote_is_an_error():
    with pytest.raises(KeyError, match="no_such_statement"):
        sql.statement("no_such_statement", "sqlite")
