-- What library consumers need. A library consumer holds a message until its vt, a supervisor until
-- its lease ends, and a 0.15 client until the message is reclaimed. Which of the three holds a
-- message must be known without a join.

alter table pgqrs_messages add column held_by_vt boolean not null default false;
create index idx_pgqrs_messages_held_by_vt on pgqrs_messages (queue_id, vt, id) where held_by_vt and archived_at is null;

-- 0.15 takes a message without a vt as due. The claims of this version look it up by its vt.
update pgqrs_messages set vt = coalesce(enqueued_at, now()) where vt is null and archived_at is null;
