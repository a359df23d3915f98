-- Statements around the migrations, which are in schema/.

-- name: lock_migrations_postgres
-- The key is arbitrary and used by pgqrs only. The lock ends with the transaction.
select pg_advisory_xact_lock(7274817312);

-- name: lock_migrations_sqlite
-- `begin immediate` is the lock.
select 1;

-- name: make_migrations_table
create table if not exists pgqrs_migrations (
    version       integer primary key,
    name          text not null,
    installed_at  text not null default current_timestamp
);

-- name: applied_migrations
select version from pgqrs_migrations order by version;

-- name: note_migration
insert into pgqrs_migrations (version, name) values (:version, :name);

-- name: patience_postgres
-- While a migration waits for a lock on a table, all other users of the table wait behind it.
select set_config('lock_timeout', :lock_timeout, true);

-- name: unhurried_postgres
-- A migration may take longer than the statement timeout of the role.
select set_config('statement_timeout', '0', true), set_config('idle_in_transaction_session_timeout', '0', true);

-- name: encoding_postgres
select current_setting('server_encoding');

-- name: identify_database
-- An existing identity stays.
insert into pgqrs_database as d (id, identity, version, oldest_version) values (1, :identity, :version, :oldest_version)
on conflict (id) do update set version = excluded.version, oldest_version = excluded.oldest_version
where d.version < excluded.version;

-- name: database_row
select identity, version, oldest_version from pgqrs_database where id = 1;

-- name: legacy_table_postgres
select 1 where to_regclass('pgqrs_messages') is not null;

-- name: legacy_table_sqlite
select 1 from sqlite_master where type = 'table' and name = 'pgqrs_messages';

-- name: columns_postgres
select r.table_name, cast(a.attname as text)
from {rows: table_name text}
join pg_attribute a on a.attrelid = to_regclass({schema} || '.' || r.table_name) and a.attnum > 0 and not a.attisdropped;

-- name: columns_sqlite
select r.table_name, c.name from {rows: table_name text} join pragma_table_info(r.table_name) c;
