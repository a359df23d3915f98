-- Maps: one step over many items. The PostgreSQL file of the same name has the comments.

-- oldest code: version 8

create table pgqrs_maps (
    id              integer primary key autoincrement,
    name            text unique,
    step_name       text not null,
    queue_id        integer not null,
    status          text not null default 'RUNNING',
    total           integer,
    fed             integer not null default 0,
    tolerated       real,
    of_share        integer not null default 0,
    created_at      text not null
);

create table pgqrs_map_inputs (
    map_id          integer not null,
    first           integer not null,
    count           integer not null,
    data            text not null,
    primary key (map_id, first)
);

create table pgqrs_map_outcomes (
    map_id          integer not null,
    first           integer not null,
    count           integer not null,
    failed          integer not null,
    took            text not null,
    data            text not null,
    ended_at        text not null,
    primary key (map_id, first)
);
create index idx_pgqrs_map_outcomes_ended on pgqrs_map_outcomes (map_id, ended_at);
create index idx_pgqrs_map_outcomes_failed on pgqrs_map_outcomes (map_id, first) where failed > 0;

create table pgqrs_map_tries (
    map_id          integer not null,
    item            integer not null,
    tries           integer not null,
    error           text not null,
    retry_at        text not null,
    primary key (map_id, item)
);

create table pgqrs_map_parts (
    map_id          integer not null,
    consumer_id     integer not null,
    done            integer not null,
    failed          integer not null,
    seconds         real not null,
    primary key (map_id, consumer_id)
);

create table pgqrs_map_ranges (
    message_id      integer primary key,
    map_id          integer not null,
    first           integer not null,
    upto            integer not null
);
create index idx_pgqrs_map_ranges_map on pgqrs_map_ranges (map_id, first);
