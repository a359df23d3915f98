-- Facts about the database. The PostgreSQL file of the same name has the comments.

create table pgqrs_database (
    id              integer primary key,
    identity        text not null,
    version         integer not null,
    oldest_version  integer not null
);
