-- What library consumers need. The PostgreSQL file of the same name has the comments.

alter table pgqrs_messages add column held_by_vt integer not null default 0;
create index idx_pgqrs_messages_held_by_vt on pgqrs_messages (queue_id, vt, id) where held_by_vt and archived_at is null;

update pgqrs_messages set vt = coalesce(enqueued_at, strftime('%Y-%m-%d %H:%M:%f', 'now')) where vt is null and archived_at is null;
