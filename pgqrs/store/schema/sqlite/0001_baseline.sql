-- The tables of pgqrs 0.15 on SQLite: times are text in UTC, JSON is text. A time is written as
-- 'YYYY-MM-DD HH:MM:SS[.ffffff]', which sorts correctly as text.

create table pgqrs_queues (
    id          integer primary key autoincrement,
    queue_name  text not null unique,
    created_at  text not null default (strftime('%Y-%m-%d %H:%M:%f', 'now'))
);

create table pgqrs_workers (
    id            integer primary key autoincrement,
    name          text not null unique,
    queue_id      integer references pgqrs_queues (id),
    started_at    text default (strftime('%Y-%m-%d %H:%M:%f', 'now')),
    heartbeat_at  text default (strftime('%Y-%m-%d %H:%M:%f', 'now')),
    shutdown_at   text,
    status        text not null default 'ready' check (status in ('ready', 'polling', 'suspended', 'interrupted', 'stopped'))
);
create index idx_pgqrs_workers_queue_status on pgqrs_workers (queue_id, status);

create table pgqrs_messages (
    id                  integer primary key autoincrement,
    queue_id            integer not null,
    payload             text not null,
    vt                  text default (strftime('%Y-%m-%d %H:%M:%f', 'now')),
    enqueued_at         text default (strftime('%Y-%m-%d %H:%M:%f', 'now')),
    read_ct             integer default 0,
    dequeued_at         text,
    producer_worker_id  integer,
    consumer_worker_id  integer,
    archived_at         text
);
create index idx_pgqrs_messages_consumer_worker_id_active on pgqrs_messages (consumer_worker_id)
    where archived_at is null and consumer_worker_id is not null;

create table pgqrs_workflows (
    id          integer primary key autoincrement,
    name        text not null unique,
    queue_id    integer not null references pgqrs_queues (id),
    created_at  text not null default (strftime('%Y-%m-%d %H:%M:%f', 'now'))
);

create table pgqrs_workflow_runs (
    id            integer primary key autoincrement,
    workflow_id   integer not null references pgqrs_workflows (id) on delete cascade,
    message_id    integer not null unique,
    status        text not null,
    input         text,
    output        text,
    error         text,
    created_at    text not null default (strftime('%Y-%m-%d %H:%M:%f', 'now')),
    updated_at    text not null default (strftime('%Y-%m-%d %H:%M:%f', 'now')),
    started_at    text,
    paused_at     text,
    completed_at  text,
    worker_id     integer
);

create table pgqrs_workflow_steps (
    id             integer primary key autoincrement,
    run_id         integer not null,
    step_name      text not null,
    status         text not null,
    input          text,
    output         text,
    error          text,
    created_at     text not null default (strftime('%Y-%m-%d %H:%M:%f', 'now')),
    updated_at     text not null default (strftime('%Y-%m-%d %H:%M:%f', 'now')),
    started_at     text,
    completed_at   text,
    retry_count    integer not null default 0,
    retry_at       text,
    last_retry_at  text,
    unique (run_id, step_name)
);
