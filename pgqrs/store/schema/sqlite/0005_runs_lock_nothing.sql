-- Nothing to do on SQLite, which has no row locks. The PostgreSQL file of the same name has the
-- comments.

select 1;
