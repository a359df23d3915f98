-- What a database says of itself, in one row: its identity, made at random when it is installed, its version, and the
-- oldest version of the code that may use it then. The code of version 6 refuses any newer database, so this migration names no older version than its own.

create table pgqrs_database (
    id              integer primary key check (id = 1),
    identity        text not null,
    version         integer not null,
    oldest_version  integer not null
);
