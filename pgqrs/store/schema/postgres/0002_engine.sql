-- What a supervisor needs in addition to the tables of 0.15: columns with defaults, indexes, and
-- one table. A 0.15 client therefore keeps working on the database. A database of 0.15 is adopted
-- by this migration.

alter type pgqrs_workflow_status add value if not exists 'CANCELLING';
alter type pgqrs_workflow_status add value if not exists 'CANCELLED';

-- A supervisor's lease: one row, renewed every few seconds, whatever the number of its runs.
create table pgqrs_supervisors (
    id           bigint primary key generated always as identity,
    name         text not null unique,
    host         text not null,
    boot_id      text not null,     -- of the kernel: a pid means nothing after a reboot
    pid_ns       text not null,     -- the pid namespace that pid belongs to
    pid          bigint not null,
    pid_started  bigint not null,   -- clock ticks after boot: tells a reused pid
    started_at   timestamptz not null default now(),
    lease_until  timestamptz not null
);

alter table pgqrs_workers add column supervisor_id bigint;
alter table pgqrs_workers add column client text;           -- null: a 0.15 client
create index idx_pgqrs_workers_supervisor on pgqrs_workers (supervisor_id) where supervisor_id is not null;

-- Grows with each claim and never decreases: (id, consumer_worker_id, claim_no) fences every late
-- write.
alter table pgqrs_messages add column claim_no bigint not null default 0;
alter table pgqrs_messages add column dead_reason text;     -- why it was given up; null while it lives or when handled
alter table pgqrs_messages set (
    fillfactor = 60, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0
);

alter table pgqrs_workflow_runs add column attempt integer not null default 0;      -- how often its function was begun
alter table pgqrs_workflow_runs add column crash_count integer not null default 0;  -- worker deaths since the last checkpoint
alter table pgqrs_workflow_runs add column crash jsonb;                             -- what the last death was
alter table pgqrs_workflow_runs set (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);

alter table pgqrs_workflow_steps add column position integer;                       -- which step of its run, from 0
alter table pgqrs_workflow_steps add column pid bigint;
alter table pgqrs_workflow_steps add column cpu_seconds double precision;
alter table pgqrs_workflow_steps add column peak_rss_bytes bigint;
alter table pgqrs_workflow_steps add column crash_count integer not null default 0;
alter table pgqrs_workflow_steps add column crash jsonb;

-- In the order of claims, live and unclaimed rows only.
create index idx_pgqrs_messages_ready on pgqrs_messages (queue_id, vt, id) where archived_at is null and consumer_worker_id is null;
create index idx_pgqrs_messages_dead on pgqrs_messages (id) where dead_reason is not null;
create index idx_pgqrs_messages_producer on pgqrs_messages (producer_worker_id) where producer_worker_id is not null;

-- Objects of 0.15 that cost time in every enqueue or every step, and that this version does not
-- need.
drop index if exists idx_pgqrs_messages_hot_path;
drop index if exists idx_pgqrs_messages_archived_at;
drop index if exists idx_pgqrs_messages_producer_worker_id;
drop index if exists idx_pgqrs_workflow_runs_message_id;
drop index if exists idx_pgqrs_workflow_runs_status;
drop index if exists idx_pgqrs_workflow_steps_status;
drop index if exists idx_pgqrs_workflows_name;
alter table pgqrs_messages drop constraint if exists fk_messages_queue_id;
alter table pgqrs_messages drop constraint if exists fk_messages_producer_worker_id;
alter table pgqrs_messages drop constraint if exists fk_messages_consumer_worker_id;
alter table pgqrs_workflow_runs drop constraint if exists pgqrs_workflow_runs_message_id_fkey;
alter table pgqrs_workflow_runs drop constraint if exists pgqrs_workflow_runs_worker_id_fkey;
alter table pgqrs_workflow_steps drop constraint if exists pgqrs_workflow_steps_run_id_fkey;
