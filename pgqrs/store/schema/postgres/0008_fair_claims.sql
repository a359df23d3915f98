-- What claims and recovery need to be fair.

-- Whether the handler of a plain message is known to have begun under the claim that holds the message. A claim resets the column.
-- When a supervisor dies, a delivery is charged only where the column is true.
alter table pgqrs_messages add column handler_began boolean not null default false;

-- Messages that were claimed before and wait to be claimed again: retries, resumed runs and messages that were given back. A claim
-- takes these first, so they must be found without reading the backlog. The coalesce is there for the planner: the statement
-- that says the same cannot go by the index of all that is ready, which the planner likes as much and which holds the backlog.
create index idx_pgqrs_messages_again on pgqrs_messages (queue_id, vt, id)
    where archived_at is null and coalesce(consumer_worker_id, 0) = 0 and claim_no > 0;
