"""Enqueue and trigger on a caller's own connection, whatever that is like: it writes where the
store is, and nowhere else."""

from collections.abc import Iterator

import psycopg
import pytest
from psycopg.rows import dict_row

import pgqrs

Stores = tuple[pgqrs.BlockingStore, pgqrs.BlockingStore]


@pytest.fixture
def stores(postgres_dsn: str) -> Iterator[Stores]:
    """One in public, one in a schema of its own whose name wants quotes."""
    with psycopg.connect(postgres_dsn, autocommit=True) as pg:
        pg.execute('create schema "Team$1"')
    with (
        pgqrs.connect(postgres_dsn) as public,
        pgqrs.connect_with(pgqrs.Config(postgres_dsn, schema="Team$1")) as team,
    ):
        public.install()
        team.install()
        public.enqueue("secrets", "theirs")
        yield public, team


def queued(store: pgqrs.BlockingStore) -> dict[str, int]:
    return {q.queue_name: q.ready for q in store.queues()}


@pytest.mark.parametrize("autocommit", [True, False])
@pytest.mark.parametrize("path", ["public", "nowhere", '"Team$1"', ""])
def test_messages_go_to_the_stores_schema(
    autocommit: bool, path: str, stores: Stores, postgres_dsn: str
) -> None:
    public, team = stores
    with psycopg.connect(postgres_dsn, autocommit=autocommit) as own:
        own.execute("select set_config('search_path', %s, false)", (path,))
        team.using(own).enqueue("mails", {"to": "team"})
        team.using(own).enqueue_many("mails", [1, 2])
        team.using(own).trigger("flow", 1)
        public.using(own).enqueue("open", 1)
        assert own.execute("show search_path").fetchone() == (path,)
        own.commit()
    assert queued(team) == {"mails": 3, "flow": 1}
    assert queued(public) == {"secrets": 1, "open": 1}


def test_it_is_rolled_back_with_the_callers_transaction(stores: Stores, postgres_dsn: str) -> None:
    _, team = stores
    with psycopg.connect(postgres_dsn) as own:
        team.using(own).enqueue("mails", 1)
        own.rollback()
        team.using(own).enqueue("mails", 2)
        own.commit()
    assert queued(team) == {"mails": 1}


@pytest.mark.parametrize("autocommit", [True, False])
def test_within_a_pipeline(autocommit: bool, stores: Stores, postgres_dsn: str) -> None:
    _, team = stores
    with psycopg.connect(postgres_dsn, autocommit=autocommit) as own:
        own.execute("create table orders (id int)")
        with own.pipeline():
            own.execute("insert into orders values (1)")
            first = team.using(own).enqueue("mails", 1)
            more = team.using(own).enqueue_many("mails", [2, 3])
            handle = team.using(own).trigger("flow", 1)
            own.execute("insert into orders values (2)")
        own.commit()
        assert own.execute("select count(*) from orders").fetchone() == (2,)
    assert [first, *more, handle.id] == [1, 2, 3, 4]
    assert [m.id for m in team.consumer("mails").dequeue(9)] == [1, 2, 3]


def test_an_error_within_a_pipeline_undoes_what_was_sent(stores: Stores, postgres_dsn: str) -> None:
    _, team = stores
    with psycopg.connect(postgres_dsn) as own:
        with pytest.raises(psycopg.errors.UndefinedTable), own.pipeline():  # noqa: PT012
            team.using(own).enqueue("mails", 1)
            own.execute("insert into nowhere values (1)")
        own.rollback()
    assert queued(team) == {"mails": 0}


@pytest.mark.parametrize("kind", [psycopg.ClientCursor, psycopg.RawCursor, psycopg.Cursor])
def test_whatever_cursors_and_rows_the_connection_makes(
    kind: type[psycopg.Cursor[object]], stores: Stores, postgres_dsn: str
) -> None:
    _, team = stores
    with psycopg.connect(postgres_dsn, cursor_factory=kind, row_factory=dict_row, prepare_threshold=0) as own:
        for n in range(8):
            team.using(own).enqueue("mails", n)
        own.commit()
        ours = "select name from pg_prepared_statements where statement like '%pgqrs_%'"
        left = own.execute(ours, prepare=False).fetchall()
    assert left == [], "nothing of ours is prepared on it"
    assert queued(team) == {"mails": 8}


def test_a_listener_hears_of_it_when_the_caller_commits(stores: Stores, postgres_dsn: str) -> None:
    _, team = stores
    with psycopg.connect(postgres_dsn, autocommit=True) as ear, psycopg.connect(postgres_dsn) as own:
        ear.execute("listen pgqrs")
        team.using(own).enqueue("mails", 1)
        assert [n.payload for n in ear.notifies(timeout=0.2)] == []
        own.commit()
        assert [n.payload for n in ear.notifies(timeout=5, stop_after=1)] == ["mails"]


def test_a_schema_that_is_missing_is_told_with_a_name_that_can_be_pasted(postgres_dsn: str) -> None:
    with (
        pgqrs.connect_with(pgqrs.Config(postgres_dsn, schema="Tenant")) as store,
        pytest.raises(pgqrs.SchemaError, match='create schema "Tenant"'),
    ):
        store.install()
