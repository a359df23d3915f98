-- Statements for library consumers and producers. A consumer holds a message until its vt, and owns
-- it until another consumer has claimed it. Each statement that ends or moves a message also checks
-- its owner.

-- name: register_worker
insert into pgqrs_workers (name, queue_id, started_at, heartbeat_at, status, client)
values (:name, :queue_id, {now}, {now}, 'ready', 'library')
on conflict (name) do nothing
returning id;

-- name: worker_status
select status from pgqrs_workers where id = :id;

-- name: worker_heard_of
select heartbeat_at >= {now - :max_age_s} from pgqrs_workers where id = :id;

-- name: move_worker
-- Returns no row if the status is no longer the one that the caller saw.
update pgqrs_workers
set status = cast(:becomes as {worker_status}), shutdown_at = case when :becomes = 'stopped' then {now} end
where id = :id and status = cast(:was as {worker_status})
returning id;

-- name: end_worker
-- Stops a consumer that nobody can reach any more, in any state.
update pgqrs_workers set status = 'stopped', shutdown_at = {now} where id = :id and shutdown_at is null;

-- name: beat_worker
update pgqrs_workers set heartbeat_at = {now} where id = :id returning id;

-- name: holds
select count(*) from pgqrs_messages where consumer_worker_id = :id and archived_at is null;

-- name: dequeue
-- Claims expired messages first, then due ones, in one statement, because most of its time is the
-- round trip to the server. Works only for a worker that may claim; if nothing is returned, the
-- caller finds out why.
with late as (
    {use lapsed}
),
fresh as (
    {use ready}
),
due as (
    select due_id from (select due_id, 0 as place from late union all select due_id, 1 from fresh) as either order by place limit :limit
)
update pgqrs_messages as c
set consumer_worker_id = :consumer_id, claim_no = {use next_claim_no}, read_ct = c.read_ct + 1,
    dequeued_at = coalesce(c.dequeued_at, {now}), vt = {now + :lock_s}, held_by_vt = true
from due
where c.id = due.due_id
  and exists (select 1 from pgqrs_workers w where w.id = :consumer_id and w.queue_id = :queue_id and w.status in ('ready', 'polling'))
returning id, queue_id, payload, vt, enqueued_at, read_ct, dequeued_at, producer_worker_id, consumer_worker_id,
          archived_at, dead_reason, claim_no, (select count(*) from pgqrs_workflows f where f.queue_id = :queue_id);

-- name: own
-- The messages that the consumer owns, locked in the order of their ids.
select m.id
from {rows: message_id bigint}
join pgqrs_messages m on m.id = r.message_id
where m.consumer_worker_id = :consumer_id and m.archived_at is null
order by m.id
{lock m};

-- name: archive_own
with mine as (
    select m.id as own_id
    from {rows: message_id bigint}
    join pgqrs_messages m on m.id = r.message_id
    where m.consumer_worker_id = :consumer_id and m.archived_at is null
    order by m.id
    {lock m}
)
update pgqrs_messages as c
set archived_at = {now}, dead_reason = :dead_reason
from mine
where c.id = mine.own_id
returning id;

-- name: extend
update pgqrs_messages as m
set vt = {m.vt + :seconds}
where m.id = :id and m.consumer_worker_id = :consumer_id and m.archived_at is null
returning id;

-- name: keep_holds
update pgqrs_messages as m
set vt = {now + :lock_s}
where m.id in (select r.message_id from {rows: message_id bigint}) and m.vt < {now + :lock_s};

-- name: delete_messages
delete from pgqrs_messages where id in (select r.message_id from {rows: message_id bigint});

-- name: withdraw
-- Withdraws messages that nobody has received yet.
delete from pgqrs_messages
where id in (select r.message_id from {rows: message_id bigint})
  and consumer_worker_id is null and archived_at is null and claim_no = 0 and read_ct = 0;

-- name: runs_of_messages
select w.id, w.message_id from {rows: message_id bigint} join pgqrs_workflow_runs w on w.message_id = r.message_id;

-- name: give_back
-- Releases messages, visible at a given time or now. `refund` subtracts the delivery, because runs
-- have budgets of their own.
update pgqrs_messages as m
set consumer_worker_id = null, held_by_vt = false, vt = coalesce(cast(:visible_at as {time}), {now}),
    read_ct = case when :refund and m.read_ct > 0 then m.read_ct - 1 else m.read_ct end
where m.id in (select r.message_id from {rows: message_id bigint});
