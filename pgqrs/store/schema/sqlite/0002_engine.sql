-- What a supervisor needs in addition to the tables of 0.15. The PostgreSQL file of the same name
-- has the comments.

create table pgqrs_supervisors (
    id           integer primary key autoincrement,
    name         text not null unique,
    host         text not null,
    boot_id      text not null,
    pid_ns       text not null,
    pid          integer not null,
    pid_started  integer not null,
    started_at   text not null default (strftime('%Y-%m-%d %H:%M:%f', 'now')),
    lease_until  text not null
);

alter table pgqrs_workers add column supervisor_id integer;
alter table pgqrs_workers add column client text;
create index idx_pgqrs_workers_supervisor on pgqrs_workers (supervisor_id) where supervisor_id is not null;

alter table pgqrs_messages add column claim_no integer not null default 0;
alter table pgqrs_messages add column dead_reason text;

alter table pgqrs_workflow_runs add column attempt integer not null default 0;
alter table pgqrs_workflow_runs add column crash_count integer not null default 0;
alter table pgqrs_workflow_runs add column crash text;

alter table pgqrs_workflow_steps add column position integer;
alter table pgqrs_workflow_steps add column pid integer;
alter table pgqrs_workflow_steps add column cpu_seconds real;
alter table pgqrs_workflow_steps add column peak_rss_bytes integer;
alter table pgqrs_workflow_steps add column crash_count integer not null default 0;
alter table pgqrs_workflow_steps add column crash text;

create index idx_pgqrs_messages_ready on pgqrs_messages (queue_id, vt, id) where archived_at is null and consumer_worker_id is null;
create index idx_pgqrs_messages_dead on pgqrs_messages (id) where dead_reason is not null;
create index idx_pgqrs_messages_producer on pgqrs_messages (producer_worker_id) where producer_worker_id is not null;

drop index if exists idx_pgqrs_messages_hot_path;
drop index if exists idx_pgqrs_messages_archived_at;
drop index if exists idx_pgqrs_messages_producer_worker_id;
