-- Columns and indexes for fair claims and recovery.

-- Whether the handler of a plain message is known to have begun under the current claim. A claim
-- resets the column. When a supervisor dies, a delivery is charged only if the column is true.
alter table pgqrs_messages add column handler_began boolean not null default false;

-- Messages that were claimed before and wait to be claimed again: retries, resumed runs and
-- released messages. A claim takes these first, so they must be found without reading the backlog.
-- The coalesce is for the planner: a statement with it cannot use the index of all ready messages,
-- which contains the backlog and which the planner would choose as well.
create index idx_pgqrs_messages_again on pgqrs_messages (queue_id, vt, id)
    where archived_at is null and coalesce(consumer_worker_id, 0) = 0 and claim_no > 0;
