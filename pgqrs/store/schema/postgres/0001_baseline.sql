-- The tables of pgqrs 0.15, column for column, so that its published package works on a database
-- created by this version. Indexes and foreign keys of 0.15 that only add cost are left out: see
-- docs/decisions/0002-schema.md. Its migration table gets the rows that its `install` would write,
-- so that 0.15 finds nothing to do.

create type worker_status as enum ('ready', 'polling', 'suspended', 'interrupted', 'stopped');
create type pgqrs_workflow_status as enum ('QUEUED', 'RUNNING', 'SUCCESS', 'ERROR', 'PAUSED');

create table pgqrs_queues (
    id          bigserial primary key,
    queue_name  varchar not null unique,
    created_at  timestamptz not null default now()
);

create table pgqrs_workers (
    id            bigint primary key generated always as identity,
    name          text not null unique,
    queue_id      bigint,
    started_at    timestamptz default now(),
    heartbeat_at  timestamptz default now(),
    shutdown_at   timestamptz,
    status        worker_status not null default 'ready',
    constraint fk_workers_queue_id foreign key (queue_id) references pgqrs_queues (id)
);
create index idx_pgqrs_workers_queue_status on pgqrs_workers (queue_id, status);
create index idx_pgqrs_workers_heartbeat on pgqrs_workers (heartbeat_at);

create table pgqrs_messages (
    id                  bigserial primary key,
    queue_id            bigint not null,
    payload             jsonb not null,
    vt                  timestamptz default now(),
    enqueued_at         timestamptz default now(),
    read_ct             integer default 0,
    dequeued_at         timestamptz,
    producer_worker_id  bigint,
    consumer_worker_id  bigint,
    archived_at         timestamptz
);
create index idx_pgqrs_messages_consumer_worker_id_active on pgqrs_messages (consumer_worker_id)
    where archived_at is null and consumer_worker_id is not null;

create table pgqrs_workflows (
    id          bigserial primary key,
    name        varchar(255) not null unique,
    queue_id    bigint not null references pgqrs_queues (id),
    created_at  timestamptz not null default now()
);

create table pgqrs_workflow_runs (
    id            bigserial primary key,
    workflow_id   bigint not null references pgqrs_workflows (id) on delete cascade,
    message_id    bigint not null unique,
    status        pgqrs_workflow_status not null,
    input         jsonb,
    output        jsonb,
    error         jsonb,
    created_at    timestamptz not null default now(),
    updated_at    timestamptz not null default now(),
    started_at    timestamptz,
    paused_at     timestamptz,
    completed_at  timestamptz,
    worker_id     bigint
);
comment on table pgqrs_workflow_runs is 'Workflow execution instances';

create table pgqrs_workflow_steps (
    id             bigserial primary key,
    run_id         bigint not null,
    step_name      varchar(255) not null,
    status         pgqrs_workflow_status not null,
    input          jsonb,
    output         jsonb,
    error          jsonb,
    created_at     timestamptz not null default now(),
    updated_at     timestamptz not null default now(),
    started_at     timestamptz,
    completed_at   timestamptz,
    retry_count    integer not null default 0,
    retry_at       timestamptz,
    last_retry_at  timestamptz,
    unique (run_id, step_name)
);
comment on table pgqrs_workflow_steps is 'Workflow step state for crash recovery';
create index idx_pgqrs_workflow_steps_retry_at on pgqrs_workflow_steps (retry_at) where retry_at is not null;

create table if not exists _sqlx_migrations (
    version         bigint primary key,
    description     text not null,
    installed_on    timestamptz not null default now(),
    success         boolean not null,
    checksum        bytea not null,
    execution_time  bigint not null
);
insert into _sqlx_migrations (version, description, success, checksum, execution_time) values
    (1, 'create worker status enum', true, '\xd2c9fdceef8a50d25d477ad3591c44d22523e3796c5d89f2185cdbbad5b744b50f4d33835e8282787566b2e72a92ed30', 0),
    (2, 'create queue table', true, '\x0e249be0fa88e93f2389598a7846b14d2222e920125411f9c5b2a45ee7e4e502d0f66cec66ebf072519e63b9633c3839', 0),
    (3, 'create worker table', true, '\x4a8661ec5994583653419ede0358f6ebdd1afc7007badc2df474cb61453a0c06c95c787770cf74902ae350991cc5eb59', 0),
    (4, 'create messages table', true, '\xa6fb1fcb94e74fffd5d4a4a8167e6a79c494a169659fa29fb3d5a4ccdef5905b7387372875471eb7d9b6c23b19687fed', 0),
    (6, 'create workflow tables', true, '\x6df4919f0208ce174be4aef9e8752615426a1346b1f641a4de5389254b68d92da14a27c58e61aa81207d7263c61b9723', 0)
on conflict (version) do nothing;
