-- What a database says of itself. The comments stand in the PostgreSQL twin of this file.

create table pgqrs_database (
    id              integer primary key,
    identity        text not null,
    version         integer not null,
    oldest_version  integer not null
);
