-- Statements for clients.

-- name: queue_by_name
select id from pgqrs_queues where queue_name = :name;

-- name: add_queue
insert into pgqrs_queues (queue_name, created_at) values (:name, {now}) on conflict (queue_name) do nothing returning id;

-- name: workflow_by_name
select w.id, w.queue_id, q.queue_name from pgqrs_workflows w join pgqrs_queues q on q.id = w.queue_id where w.name = :name;

-- name: workflow_of_queue
select w.id, w.name from pgqrs_workflows w where w.queue_id = :queue_id order by w.id;

-- name: add_workflow
insert into pgqrs_workflows (name, queue_id, created_at) values (:name, :queue_id, {now}) on conflict (name) do nothing returning id;

-- name: enqueue
-- Enqueues on a queue that the caller has just looked up.
insert into pgqrs_messages (queue_id, payload, vt, enqueued_at, read_ct, producer_worker_id)
select :queue_id, r.payload, {now + :delay_s}, {now}, 0, cast(:producer_id as bigint)
from {rows: payload json}
returning id;

-- name: enqueue_known
-- Enqueues on a queue whose id the caller has cached. Returns no rows if that queue has another
-- name or does not exist, because it was deleted or the database was created anew. No foreign key
-- detects that.
insert into pgqrs_messages (queue_id, payload, vt, enqueued_at, read_ct, producer_worker_id)
select :queue_id, r.payload, {now + :delay_s}, {now}, 0, cast(:producer_id as bigint)
from {rows: payload json}
where (select q.queue_name from pgqrs_queues q where q.id {=} :queue_id) {=} :queue
returning id;

-- name: enqueue_run
-- Enqueues runs of a workflow in the same way. Also returns no rows if the workflow does not use
-- the queue.
insert into pgqrs_messages (queue_id, payload, vt, enqueued_at, read_ct, producer_worker_id)
select :queue_id, r.payload, {now + :delay_s}, {now}, 0, cast(:producer_id as bigint)
from {rows: payload json}
where (select q.queue_name from pgqrs_workflows f join pgqrs_queues q on q.id {=} f.queue_id
       where f.name {=} :workflow and f.queue_id {=} :queue_id) {=} :queue
returning id;

-- name: reserve_messages
-- PostgreSQL only, for a COPY, which returns no ids: reserves the ids, and returns the times with
-- them. The ids are one row of text, because loading ten thousand rows takes longer than inserting
-- the messages. Times are in ISO 8601, whatever DateStyle and TimeZone are.
select string_agg(cast(taken.id as text), ',' order by taken.id),
       to_char({now + :delay_s} at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || '+00',
       to_char({now} at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || '+00'
from (select nextval((select cast(pg_get_serial_sequence('pgqrs_messages', 'id') as regclass))) as id
      from generate_series(1, cast(:count as bigint))
      where exists (select 1 from pgqrs_queues q where q.id = :queue_id
                      and (cast(:queue as text) is null or q.queue_name = :queue)
                      and (cast(:workflow as text) is null
                           or exists (select 1 from pgqrs_workflows f where f.queue_id = q.id and f.name = :workflow)))
     ) as taken;

-- name: lock_message
-- A client's changes begin with this lock. It reads nothing else: after waiting for a lock, a
-- statement still sees the old rows of other tables.
select m.id from pgqrs_messages m where m.id = :id {lock m};

-- name: locked_message
-- A locked message, its workflow and its run. The last column says whether the message was
-- delivered at least once.
select m.id, q.queue_name, m.consumer_worker_id, m.archived_at, m.dead_reason,
       f.id, f.name, w.id, w.status, m.claim_no > 0 or m.read_ct > 0
from pgqrs_messages m
join pgqrs_queues q on q.id = m.queue_id
left join pgqrs_workflow_runs w on w.message_id = m.id
left join pgqrs_workflows f on f.id = coalesce(w.workflow_id, (select min(g.id) from pgqrs_workflows g where g.queue_id = m.queue_id))
where m.id = :id;

-- name: put_run
-- Inserts a run's row for a message that was not begun yet.
insert into pgqrs_workflow_runs (workflow_id, message_id, status, input, created_at, updated_at, completed_at)
select :workflow_id, m.id, cast(:status as {status}), m.payload, {now}, {now}, case when :done then {now} end
from pgqrs_messages m
where m.id = :message_id;

-- name: set_run_status
update pgqrs_workflow_runs
set status = cast(:status as {status}), error = null, updated_at = {now}, completed_at = case when :done then {now} else completed_at end
where id = :run_id;

-- name: end_message
-- Takes the message from its holder: the number of the holder's claim is no longer current.
update pgqrs_messages as c set archived_at = {now}, claim_no = {use next_claim_no} where c.id = :id;

-- name: make_due
update pgqrs_messages set vt = {now} where id = :id and vt > {now};

-- name: revive_message
update pgqrs_messages
set archived_at = null, dead_reason = null, consumer_worker_id = null, held_by_vt = false, read_ct = 0, vt = {now}
where id = :id;

-- name: revive_run
update pgqrs_workflow_runs
set status = cast('QUEUED' as {status}), output = null, error = null, attempt = 0, crash_count = 0, crash = null,
    completed_at = null, paused_at = null, started_at = null, updated_at = {now}
where id = :run_id;

-- name: forget_failed_steps
-- Steps that failed or were open at the end are executed again. Everything that the workflow had
-- passed stays, including a handled failure.
delete from pgqrs_workflow_steps
where run_id = :run_id
  and status <> 'SUCCESS'
  and coalesce(position, 0) > coalesce(
      (select max(p.position) from pgqrs_workflow_steps p where p.run_id = :run_id and p.status = 'SUCCESS'), -1);
