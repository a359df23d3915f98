"""Our statements on a connection of our own, prepared, past the driver's cursor: that looks at each execution anew for what never
changes here, the placeholders, the types, whether to prepare, which takes as long as the server does to insert a row."""

from datetime import datetime
from typing import Any

import psycopg
from psycopg import generators
from psycopg.adapt import Transformer
from psycopg.pq import ExecStatus

from pgqrs.store.database import Row
from pgqrs.store.sql import Statement

PREPARE_AT = 2  # executions on a connection: once is not worth a turn of its own


class Prepared:
    """Statements by one connection, whose client_encoding is UTF-8. Nothing else may deallocate what it prepared there."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        self._loading = Transformer(connection)
        self._executions: dict[tuple[bytes, tuple[int, ...]], int] = {}
        self._names: dict[tuple[bytes, tuple[int, ...]], bytes] = {}

    def run(self, statement: Statement, params: dict[str, Any]) -> list[Row]:
        """As a cursor would: raises psycopg's errors, and takes None, bool, int, float, str and datetime."""
        sent = [_sent(params[name]) for name in statement.parameters]
        types, data = tuple([oid for oid, _ in sent]), [value for _, value in sent]
        link, what = self._connection.pgconn, (statement.numbered, types)
        with self._connection.lock:
            name = self._names.get(what) or self._prepared(what)
            if name is None:
                link.send_query_params(statement.numbered, data, types)
            else:
                link.send_query_prepared(name, data)
            return self._answer()

    def _prepared(self, what: tuple[bytes, tuple[int, ...]]) -> bytes | None:
        self._executions[what] = count = self._executions.get(what, 0) + 1
        if count < PREPARE_AT:
            return None
        name = b"pgqrs_%d" % len(self._names)
        self._connection.pgconn.send_prepare(name, *what)
        self._answer()
        self._names[what] = name
        return name

    def _answer(self) -> list[Row]:
        link = self._connection.pgconn
        results = self._connection.wait(generators.execute(link))
        if not results:
            raise psycopg.OperationalError("the server gave no answer")
        result = results[-1]
        if result.status == ExecStatus.TUPLES_OK:
            self._loading.set_pgresult(result)
            return self._loading.load_rows(0, result.ntuples, tuple)
        if result.status != ExecStatus.COMMAND_OK:
            raise psycopg.errors.error_from_result(result, encoding="utf-8")
        return []


# By its types a server knows what an expression of parameters alone is; of text and of nothing it finds out itself.
TEXT = NULL = 0
BOOL, INT8, FLOAT8, TIMESTAMPTZ = 16, 20, 701, 1184


def _sent(value: Any) -> tuple[int, bytes | None]:
    """Its type and its text. Subclasses, such as NumPy's floats, are what they are one of."""
    match value:
        case None:
            return NULL, None
        case str():
            return TEXT, value.encode()
        case bool():
            return BOOL, b"t" if value else b"f"
        case int():
            return INT8, b"%d" % value
        case float():
            return FLOAT8, repr(float(value)).encode()
        case datetime():
            return TIMESTAMPTZ, value.isoformat().encode()
    raise TypeError(f"a statement takes no {type(value).__name__}")
