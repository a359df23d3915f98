"""In a schema where others may create, their functions and operators are never resolved in a
statement of ours."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

import pgqrs
from pgqrs.store import open_store
from tests.store.given import Flow, finish, step, wrote

# Each matches what our statements say better than PostgreSQL's own: a varchar compared with a text,
# an array of text.
PLANT = """
create table public.caught (who text, what text);
grant all on public.caught to public;
create function public.catch(what text) returns boolean language plpgsql volatile as
    $$ begin insert into public.caught values (current_user, what); return true; end $$;
create function public.same(a varchar, b text) returns boolean language sql volatile as
    $$ select public.catch('=') and a::text operator(pg_catalog.=) b $$;
create operator public.= (leftarg = varchar, rightarg = text, function = public.same);
create function public.unnest(a text[]) returns setof text language sql volatile as
    $$ select public.catch('unnest'); select pg_catalog.unnest(a) $$;
create function public.unnest(a bigint[]) returns setof bigint language sql volatile as
    $$ select public.catch('unnest'); select pg_catalog.unnest(a) $$;
create function public.count(bigint) returns bigint language sql volatile as
    $$ select public.catch('count'); select 1::bigint $$;
create function public.to_char(timestamp, text) returns text language sql volatile as
    $$ select public.catch('to_char'); select '' $$;
create function public.coalesce(a bigint, b integer) returns bigint language sql as $$ select 0::bigint $$;
create function public.now() returns timestamptz language sql volatile as
    $$ select public.catch('now'); select pg_catalog.now() $$;
create function public.make_interval(secs integer) returns interval language sql volatile as
    $$ select public.catch('make_interval'); select interval '1 second' $$;
create function public.pg_notify(a varchar, b varchar) returns void language sql volatile as
    $$ select public.catch('pg_notify') $$;
"""


@pytest.fixture
def planted(postgres_dsn: str) -> Iterator["psycopg.Connection[tuple[object, ...]]"]:
    """An installed database in whose schema somebody has planted these; the connection looks
    there first."""
    with pgqrs.connect(postgres_dsn) as store:
        store.install()
    with psycopg.connect(postgres_dsn, autocommit=True) as pg:
        pg.execute(PLANT.encode())
        yield pg


def caught(pg: "psycopg.Connection[tuple[object, ...]]") -> list[tuple[object, ...]]:
    return pg.execute("select what, count(*) from public.caught group by what").fetchall()


def test_what_is_planted_catches_whoever_names_no_schema(
    planted: "psycopg.Connection[tuple[object, ...]]",
) -> None:
    planted.execute("insert into pgqrs_queues (queue_name) values ('q')")
    planted.execute("select 1 from pgqrs_queues, unnest(array['a']::text[]) where queue_name = 'q'::text")
    assert {what for what, _ in caught(planted)} == {"=", "unnest"}


def test_a_client_is_not_caught(planted: "psycopg.Connection[tuple[object, ...]]", postgres_dsn: str) -> None:
    with pgqrs.connect(postgres_dsn) as store:
        store.install()
        store.verify()
        store.enqueue("tasks", 1)
        ids = store.enqueue_many("tasks", range(200), delay=0.5)
        store.consumer("tasks").dequeue(5)
        store.queues()
        store.runs(workflow="none")
        assert store.messages.message(ids[0]).payload == 0
        store.messages.cautions()
    assert caught(planted) == []


def test_a_supervisor_is_not_caught(
    planted: "psycopg.Connection[tuple[object, ...]]", postgres_dsn: str
) -> None:
    store = open_store(pgqrs.Config(postgres_dsn), steady_plans=True)
    flow = Flow(store)
    claim = flow.begun()
    wrote(store, step(claim))
    wrote(store, finish(claim))
    store.renew_lease(flow.consumer.supervisor_id, 15)
    store.retire(flow.consumer.supervisor_id, 5)
    store.close()
    assert caught(planted) == []


def test_enqueueing_on_a_callers_connection_is_not_caught(
    planted: "psycopg.Connection[tuple[object, ...]]", postgres_dsn: str
) -> None:
    with pgqrs.connect(postgres_dsn) as store:
        using = store.using(planted)
        using.enqueue("tasks", 1)
        using.enqueue_many("tasks", ["a", "b"], delay=5)
        using.trigger("flow", 1)
    assert caught(planted) == []


@pytest.mark.slow
@pytest.mark.parametrize("command", ["install", "verify"])
def test_install_and_verify_warn_of_a_schema_where_others_may_create(
    command: str, postgres_dsn: str, tmp_path: Path
) -> None:
    def told() -> str:
        ended = subprocess.run(
            [sys.executable, "-m", "pgqrs", command, "--dsn", postgres_dsn], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr
        return ended.stderr

    with pgqrs.connect(postgres_dsn) as store, psycopg.connect(postgres_dsn, autocommit=True) as pg:
        store.install()
        pg.execute("revoke create on schema public from public")
        assert told() == ""
        pg.execute("grant create on schema public to public")
        assert told().startswith("warning: PUBLIC may create objects in the schema")


def test_rows_that_a_policy_hides_are_warned_of(postgres_dsn: str) -> None:
    with pgqrs.connect(postgres_dsn) as store, psycopg.connect(postgres_dsn, autocommit=True) as pg:
        store.install()
        pg.execute("alter table pgqrs_messages enable row level security")
        assert [c for c in store.messages.cautions() if "row-level" in c] == [], "a superuser sees all"
        pg.execute("create role hidden_from login; grant all on all tables in schema public to hidden_from")
        try:
            dsn = postgres_dsn.replace("postgres@", "hidden_from@")
            with pgqrs.connect(dsn) as other:
                [caution] = [c for c in other.messages.cautions() if "row-level" in c]
                assert "pgqrs_messages from the role 'hidden_from'" in caution
        finally:
            pg.execute("drop owned by hidden_from; drop role hidden_from")
