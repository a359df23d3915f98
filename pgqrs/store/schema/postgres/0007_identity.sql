-- Facts about the database, in one row. The identity is random and created by the first install.
-- `oldest_version` is the oldest version of the code that may use the database at this `version`.
-- Code of version 6 and older refuses any newer database, so this migration names no older version.

create table pgqrs_database (
    id              integer primary key check (id = 1),
    identity        text not null,
    version         integer not null,
    oldest_version  integer not null
);
