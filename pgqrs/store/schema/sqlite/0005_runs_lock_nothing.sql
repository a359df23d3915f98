-- Nothing here: a file has no locks of rows. The comment on it stands in the PostgreSQL twin of this file.

select 1;
