"""A PostgreSQL database that is made once and emptied for each test."""

import psycopg

from tests.postgres_server import Postgres

# As a replica no trigger fires, foreign keys among them: the tables need no order, and no change of their own, which takes longer.
EMPTY = """
set session_replication_role = replica;
do $$
declare t text;
begin
    for t in select tablename from pg_tables where schemaname = 'public' and tablename not like '%migrations' and tablename <> 'pgqrs_database' loop
        execute format('delete from %I', t);
    end loop;
    perform setval(format('%I', sequencename)::regclass, 1, false) from pg_sequences where schemaname = 'public';
end $$
"""


class Emptied:
    def __init__(self, server: Postgres, name: str) -> None:
        self._server, self._name = server, name
        self.dsn = server.create_database(name)
        self._connection: psycopg.Connection | None = None

    def empty(self) -> None:
        """Takes the rows, and leaves the schema."""
        try:
            self._connected().execute(EMPTY)
        except psycopg.OperationalError:  # a test has ended everybody's connections
            self._connected().execute(EMPTY)

    def _connected(self) -> psycopg.Connection:
        if self._connection is None or self._connection.closed:
            self._connection = psycopg.connect(self.dsn, autocommit=True)
        return self._connection

    def drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._server.drop_database(self._name)
