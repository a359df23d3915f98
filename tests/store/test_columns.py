"""A column of values, handed to PostgreSQL in its own notation, arrives as it was."""

import psycopg
import pytest

from pgqrs.store.postgresql.database import _array

TEXTS = [
    "",
    "NULL",
    "null",
    None,
    'a "quoted" word',
    "back\\slash",
    '\\"',
    "{a,b}",
    " spaces ",
    "line\nline\t",
    "é€😀",
    "'",
]


@pytest.mark.parametrize(
    ("kind", "type_", "values"),
    [
        ("text", "text", TEXTS),
        ("json", "text", [b'{"a": "\\"\\\\"}', b"null", None, b'"{,}"']),
        ("bigint", "bigint", [0, -1, 2**63 - 1, None]),
        ("float", "float8", [0.1, 1e300, None, float("inf")]),
        ("bool", "bool", [True, False, None]),
        ("text", "text", []),
    ],
)
def test_it_arrives_as_it_was(postgres_dsn, kind, type_, values):
    with psycopg.connect(postgres_dsn) as connection:
        found = connection.execute(f"select %s::{type_}[]", (_array(kind, values),)).fetchone()[0]
    assert found == [v.decode() if isinstance(v, bytes) else v for v in values]
