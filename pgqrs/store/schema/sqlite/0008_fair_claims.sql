-- Columns and indexes for fair claims and recovery. The PostgreSQL file of the same name has the
-- comments.

alter table pgqrs_messages add column handler_began integer not null default 0;
create index idx_pgqrs_messages_again on pgqrs_messages (queue_id, vt, id)
    where archived_at is null and coalesce(consumer_worker_id, 0) = 0 and claim_no > 0;
