"""One `connect` for both kinds of store; it fails where it is called, shows no password, and leaves nothing behind."""

import asyncio
import gc
import subprocess
import sys
import threading
import time

import psycopg
import pytest

import pgqrs
from tests.surface.given import a_pair, until

# Which database


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "pg", "pgsql", "PostgreSQL"])
async def test_a_scheme_that_begins_like_postgres_is_postgres(installed_postgres_dsn, scheme):
    dsn = scheme + "://" + installed_postgres_dsn.partition("://")[2]
    async with pgqrs.connect(dsn) as store:
        assert await (await store.get_queues()).count() >= 0


async def test_a_sqlite_dsn_is_an_absolute_path_a_relative_one_or_memory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for dsn in (f"sqlite://{tmp_path}/absolute.db", "sqlite://relative.db", "sqlite::memory:"):
        async with pgqrs.connect(dsn) as store:
            _, consumer = await a_pair(store)
            assert await consumer.dequeue() == []
    assert {p.name for p in tmp_path.iterdir()} >= {"absolute.db", "relative.db"}
    assert not [p for p in tmp_path.iterdir() if "memory" in p.name]


async def test_what_is_in_memory_is_each_store_s_own():
    async with pgqrs.connect("sqlite::memory:") as one, pgqrs.connect("sqlite::memory:") as other:
        await one.queue("tasks")
        assert await (await other.get_queues()).count() == 0


@pytest.mark.parametrize("other", ["mysql://h/d", "http://h", "", "x.db", "/tmp/x.db", "sqlite:x.db", "://"])
def test_any_other_scheme_is_refused_with_those_accepted(other):
    with pytest.raises(pgqrs.ConfigError, match=r"postgresql://.*sqlite://"):
        pgqrs.connect(other).open()
    with pytest.raises(pgqrs.ConfigError):
        asyncio.run(connected(pgqrs.connect(other)))


@pytest.mark.parametrize("nameless", ["sqlite://", "sqlite:///x.db?mode=ro"])
def test_a_sqlite_dsn_that_names_no_file_is_refused(nameless):
    with pytest.raises(pgqrs.ConfigError, match="sqlite"):
        pgqrs.connect(nameless).open()


def test_without_an_argument_it_is_the_environment_s_database(tmp_path, monkeypatch):
    monkeypatch.setenv("PGQRS_DSN", f"sqlite://{tmp_path}/named.db")
    with pgqrs.connect() as store:
        store.install()
    assert (tmp_path / "named.db").exists()


def test_and_without_one_there_a_file_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("PGQRS_DSN", raising=False)
    monkeypatch.chdir(tmp_path)
    with pgqrs.connect() as store:
        store.install()
    assert (tmp_path / "pgqrs.db").exists()


# Both kinds


async def test_awaiting_gives_an_async_store(dsn):
    store = await pgqrs.connect(dsn)
    assert isinstance(store, pgqrs.Store)
    await store.close()


async def test_async_with_gives_one_and_closes_it(dsn):
    async with pgqrs.connect(dsn) as store:
        assert isinstance(store, pgqrs.Store)
        await store.queue("tasks")
    with pytest.raises(pgqrs.PgqrsConnectionError, match="was closed"):
        await store.queue("more")


def test_with_gives_a_blocking_one_and_closes_it(dsn):
    with pgqrs.connect(dsn) as store:
        assert isinstance(store, pgqrs.BlockingStore)
        store.queue("tasks")
    with pytest.raises(pgqrs.PgqrsConnectionError, match="was closed"):
        store.queue("more")


def test_open_gives_a_blocking_one_without_a_block(dsn):
    store = pgqrs.connect(dsn).open()
    assert store.queue("tasks").queue_name == "tasks"
    store.close()
    store.close()


async def test_an_async_store_can_be_used_in_a_block_of_its_own_and_closed_twice(dsn):
    store = await pgqrs.connect(dsn)
    async with store:
        await store.queue("tasks")
    await store.close()


async def test_connect_can_be_a_task(dsn):
    store = await asyncio.create_task(pgqrs.connect(dsn))
    async with store, await asyncio.wait_for(pgqrs.connect(dsn), 10) as other:
        assert await (await other.get_queues()).count() == 0


async def test_connect_with_takes_settings(dsn):
    async with pgqrs.connect_with(pgqrs.Config(dsn, max_connections=2)) as store:
        assert store.config.max_connections == 2
        await a_pair(store)


async def test_nothing_happens_before_it_is_awaited(tmp_path):
    asked = pgqrs.connect(f"sqlite://{tmp_path}/x.db")
    assert not (tmp_path / "x.db").exists()
    asked.close()


async def test_a_store_that_is_not_in_s3_is_no_s3_store(store, blocking):
    for other in (store, blocking, None):
        if other is not None and other.config.backend == "s3":
            continue
        with pytest.raises(TypeError, match="expected 's3'"):
            pgqrs.as_s3(other)


async def test_both_kinds_see_the_same_database(store, blocking):
    await store.queue("tasks")
    assert [q.queue_name for q in blocking.get_queues().list()] == ["tasks"]


# What cannot be reached


@pytest.mark.parametrize(
    "away",
    [
        "postgresql://u:geheim@127.0.0.1:1/d",
        "postgresql://u:geheim@no-such-host.invalid/d",
        "sqlite:///no/such/folder/x.db",
    ],
)
async def test_a_database_that_cannot_be_reached_is_told_by_connect_itself(away):
    with pytest.raises(pgqrs.PgqrsConnectionError) as refused:
        await pgqrs.connect(away)
    assert "geheim" not in shown(refused.value)
    with pytest.raises(pgqrs.PgqrsConnectionError):
        pgqrs.connect(away).open()


async def test_a_host_that_never_answers_is_waited_for_no_longer_than_the_timeout():
    config = pgqrs.Config("postgresql://u:geheim@10.255.255.1/d")
    config.connection_timeout_seconds = 1
    began = time.monotonic()
    with pytest.raises(pgqrs.PgqrsConnectionError):
        await pgqrs.connect_with(config)
    assert time.monotonic() - began < 5


async def test_a_database_that_does_not_exist_is_told_by_connect(installed_postgres_dsn):
    with pytest.raises(pgqrs.PgqrsConnectionError, match="does not exist"):
        await pgqrs.connect(installed_postgres_dsn.rpartition("/")[0] + "/nowhere")


async def test_a_file_that_is_no_database_is_told_by_connect(tmp_path):
    (tmp_path / "x.db").write_text("no database at all " * 100)
    with pytest.raises(pgqrs.PgqrsConnectionError, match=r"x.db: file is not a database"):
        await pgqrs.connect(f"sqlite://{tmp_path}/x.db")


async def test_a_password_shows_nowhere(installed_postgres_dsn):
    dsn = installed_postgres_dsn.replace("postgres@", "postgres:geheim@")
    async with pgqrs.connect(dsn) as store:
        producer, consumer = await a_pair(store)
        seen = [store, store.config, producer, consumer, pgqrs.admin(store), await store.get_queues()]
        for each in seen:
            assert "geheim" not in repr(each)
    with pgqrs.connect(dsn) as blocking:
        assert "geheim" not in repr(blocking)
    with pytest.raises(pgqrs.PgqrsError) as refused:
        await store.queue("more")
    assert "geheim" not in shown(refused.value)


async def test_nor_in_the_error_of_a_query(installed_postgres_dsn):
    dsn = installed_postgres_dsn.replace("postgres@", "postgres:geheim@")
    async with pgqrs.connect_with(pgqrs.Config(dsn, schema="nowhere")) as store:
        with pytest.raises(pgqrs.PgqrsError) as refused:
            await store.queue("tasks")
    assert "geheim" not in shown(refused.value)


# The schema


async def test_the_tables_are_where_the_schema_option_says(postgres_dsn):
    with psycopg.connect(postgres_dsn, autocommit=True) as pg:
        pg.execute('create schema "app_$1"')
    async with pgqrs.connect_with(pgqrs.Config(postgres_dsn, schema="app_$1")) as store:
        await pgqrs.admin(store).install()
        await pgqrs.admin(store).verify()
        producer, consumer = await a_pair(store)
        await producer.enqueue({"a": 1})
        assert [m.payload for m in await consumer.dequeue()] == [{"a": 1}]
    with psycopg.connect(postgres_dsn, autocommit=True) as pg:
        found = pg.execute(
            "select distinct schemaname from pg_tables where tablename like 'pgqrs%'"
        ).fetchall()
    assert found == [("app_$1",)]


async def test_two_schemas_of_one_database_do_not_mix(postgres_dsn):
    with psycopg.connect(postgres_dsn, autocommit=True) as pg:
        pg.execute("create schema one; create schema two")
    one = pgqrs.connect_with(pgqrs.Config(postgres_dsn, schema="one"))
    two = pgqrs.connect_with(pgqrs.Config(postgres_dsn, schema="two"))
    async with one as one, two as two:
        for store in (one, two):
            await pgqrs.admin(store).install()
        await one.queue("tasks")
        assert await (await two.get_queues()).count() == 0


async def test_install_makes_no_schema(postgres_dsn):
    async with pgqrs.connect_with(pgqrs.Config(postgres_dsn, schema="nowhere")) as store:
        with pytest.raises(pgqrs.SchemaError, match="create schema"):
            await pgqrs.admin(store).install()


async def test_without_tables_a_server_says_how_to_get_them(postgres_dsn):
    async with pgqrs.connect(postgres_dsn) as store:
        for call in (store.queue("tasks"), pgqrs.admin(store).verify(), store.get_queues()):
            with pytest.raises(pgqrs.SchemaError, match="pgqrs install"):
                await call
        await pgqrs.admin(store).install()
        await store.queue("tasks")


async def test_on_sqlite_the_first_write_installs_them(tmp_path):
    async with pgqrs.connect(f"sqlite://{tmp_path}/x.db") as store:
        assert (await store.queue("tasks")).id == 1


# What is left behind


@pytest.mark.parametrize("used", ["connected", "used", "awaiting"])
def test_a_program_that_closes_nothing_ends_at_once_and_prints_nothing(dsn, used):
    script = f"""
import asyncio, pgqrs
async def main():
    global store, producer, waiting
    store = await pgqrs.connect({dsn!r})
    if {used!r} != "connected":
        await store.queue("tasks")
        producer = await store.producer("tasks")
        await asyncio.gather(*(producer.enqueue(n) for n in range(20)))
    if {used!r} == "awaiting":
        waiting = asyncio.create_task(anext(store.consume_iter("elsewhere")))
        await asyncio.sleep(0)
asyncio.run(main())
"""
    began = time.monotonic()
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert time.monotonic() - began < 5


def test_a_blocking_program_that_closes_nothing_ends_as_well(dsn):
    script = f"import pgqrs; store = pgqrs.connect({dsn!r}).open(); store.enqueue('tasks', 1)"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


async def test_an_abandoned_store_holds_no_transaction_and_few_connections(installed_postgres_dsn):
    stores = [await pgqrs.connect(installed_postgres_dsn) for _ in range(20)]
    for store in stores:
        await (await store.get_queues()).count()
    with psycopg.connect(installed_postgres_dsn, autocommit=True) as pg:
        states = pg.execute(
            "select state from pg_stat_activity where datname = current_database() and application_name = 'pgqrs'"
        ).fetchall()
    assert {s for (s,) in states} == {"idle"}
    assert len(states) <= 2 * len(stores)
    await asyncio.gather(*(store.close() for store in stores))


async def test_what_another_store_holds_open_keeps_nobody_from_writing(dsn):
    abandoned = [await pgqrs.connect(dsn) for _ in range(5)]
    for store in abandoned:
        await (await store.get_queues()).count()
    async with pgqrs.connect(dsn) as store:
        await asyncio.wait_for(store.queue("tasks"), 5)


@pytest.mark.slow
async def test_a_hundred_stores_share_one_server(dsn):
    stores = await asyncio.gather(*(pgqrs.connect(dsn) for _ in range(100)))
    await pgqrs.admin(stores[0]).verify()
    await stores[0].queue("tasks")
    producers = [await store.producer("tasks") for store in stores]
    ids = [await producer.enqueue(1) for producer in producers]
    assert sorted(ids) == list(range(1, 101))
    await asyncio.gather(*(store.close() for store in stores))


@pytest.mark.slow
async def test_an_abandoned_store_keeps_no_thread(dsn):
    await asyncio.sleep(0)
    before = set(threading.enumerate())
    store = await pgqrs.connect(dsn)
    await store.queue("tasks")
    assert all(t.daemon for t in set(threading.enumerate()) - before)
    del store
    gc.collect()

    async def gone() -> bool:
        gc.collect()
        return not {t for t in set(threading.enumerate()) - before if t.name.startswith("pgqrs")}

    await until(gone)


async def test_who_cannot_be_woken_costs_no_enqueue(postgres_dsn, postgres_server):
    """Listeners are told on a connection of their own, which may not be had."""
    database = postgres_dsn.rpartition("/")[2]
    async with pgqrs.connect(postgres_dsn) as store:
        await pgqrs.admin(store).install()
        producer, _ = await a_pair(store)
        with psycopg.connect(postgres_server.dsn(), autocommit=True) as pg:
            pg.execute(f"alter database {database} with allow_connections false")
            try:
                assert await producer.enqueue(1) == 1
                assert await store.enqueue("tasks", 2) == 2
            finally:
                pg.execute(f"alter database {database} with allow_connections true")


# Event loops


def test_a_store_works_in_several_event_loops_one_after_the_other(dsn):
    store = asyncio.run(connected(pgqrs.connect(dsn)))
    producer, consumer = asyncio.run(a_pair(store))
    for n in range(3):
        asyncio.run(producer.enqueue(n))
    assert [m.payload for m in asyncio.run(consumer.dequeue(10))] == [0, 1, 2]
    asyncio.run(store.close())


def test_and_in_several_at_once(dsn):
    store = asyncio.run(connected(pgqrs.connect(dsn)))
    producer, consumer = asyncio.run(a_pair(store))
    threads = [threading.Thread(target=lambda: asyncio.run(producer.enqueue(1))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(asyncio.run(consumer.dequeue(10))) == 4
    asyncio.run(store.close())


def test_the_driver_of_a_loop_that_was_closed_in_the_middle_does_no_harm(dsn):
    store = asyncio.run(connected(pgqrs.connect(dsn)))
    producer, _ = asyncio.run(a_pair(store))

    async def leave_it_behind() -> None:
        asyncio.create_task(producer.enqueue(1))  # noqa: RUF006
        await asyncio.sleep(0)

    asyncio.run(leave_it_behind())
    assert asyncio.run(producer.enqueue(2)) >= 1
    asyncio.run(store.close())


def test_a_store_is_refused_in_a_forked_child(dsn):
    script = f"""
import asyncio, os, pgqrs
async def connected(): return await pgqrs.connect({dsn!r})
store = asyncio.run(connected())
child = os.fork()
if child == 0:
    try:
        asyncio.run(store.queue("tasks"))
    except pgqrs.InternalError as e:
        os._exit(42 if "connect again" in str(e) else 1)
    os._exit(2)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    # From 3.12 on, Python warns of each fork of a process with threads. This program forks on purpose.
    command = [sys.executable, "-W", "ignore:This process:DeprecationWarning", "-c", script]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (ended.stdout, ended.stderr) == ("42\n", "")


# Config as attributes: more of it in tests/test_config.py and test_configuration.py


def test_settings_are_read_and_written_as_attributes():
    config = pgqrs.Config("sqlite://x.db", schema="app", max_connections=4)
    assert (config.dsn, config.schema, config.max_connections) == ("sqlite://x.db", "app", 4)
    assert pgqrs.Config.from_dsn("sqlite://x.db").dsn == "sqlite://x.db"
    for name, value in {
        "dsn": "sqlite://y.db",
        "schema": "other",
        "max_connections": 9,
        "connection_timeout_seconds": 1.5,
        "default_lock_time_seconds": 60,
        "default_max_batch_size": 10,
        "max_read_ct": 3,
        "heartbeat_interval_seconds": 2,
        "max_payload_size_bytes": 100,
        "max_string_length": 10,
        "max_object_depth": 2,
        "forbidden_keys": ["secret"],
        "required_keys": ["id"],
        "max_enqueue_per_second": None,
        "max_enqueue_burst": 7,
        "s3_mode": pgqrs.DurabilityMode.Local,
        "s3_cache_dir": "cache",
    }.items():
        setattr(config, name, value)
        assert getattr(config, name) == value


@pytest.mark.parametrize(
    "name,value",
    [
        ("dsn", None), ("max_connections", 0), ("max_connections", "many"), ("max_connections", True),
        ("connection_timeout_seconds", -1), ("connection_timeout_seconds", float("nan")),
        ("default_lock_time_seconds", "long"), ("default_max_batch_size", 0), ("max_read_ct", 0),
        ("heartbeat_interval_seconds", -1), ("max_payload_size_bytes", 0), ("max_string_length", -1),
        ("max_object_depth", 1.5), ("forbidden_keys", "secret"), ("required_keys", [1]),
        ("max_enqueue_per_second", 0), ("max_enqueue_burst", 0), ("schema", "1a"), ("s3_cache_dir", " "),
        ("s3_mode", "sometimes"),
    ],
)  # fmt: skip
def test_what_a_setting_cannot_be_is_refused_on_assignment(name, value):
    config = pgqrs.Config("sqlite://x.db")
    before = getattr(config, name)
    with pytest.raises(pgqrs.ConfigError):
        setattr(config, name, value)
    assert getattr(config, name) == before


async def connected(asked):
    return await asked


def shown(error: BaseException) -> str:
    """All that a traceback would show of it."""
    told = ""
    at: BaseException | None = error
    while at is not None:
        told += repr(at) + str(at) + "".join(getattr(at, "__notes__", []))
        at = at.__cause__ or at.__context__
    return told
