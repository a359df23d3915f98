-- Statements that only read.

-- name: clock
select clock_timestamp();

-- name: schema_version
select max(version) from pgqrs_migrations;

-- name: run_status
select w.status, w.output, w.error, m.archived_at, m.dead_reason, f.id
from pgqrs_messages m
left join pgqrs_workflow_runs w on w.message_id = m.id
left join pgqrs_workflows f on f.queue_id = m.queue_id
where m.id = :id;

-- A run is identified by the id of its message. The number of its own row is for readers of 0.15's
-- tables.

-- name: run
select m.id, f.id, m.id, w.status, m.payload, w.output, w.error, w.created_at, w.updated_at,
       f.name, w.attempt, w.crash_count, w.crash, m.enqueued_at, w.started_at, w.completed_at,
       case when m.archived_at is null and m.consumer_worker_id is null then m.vt end
from pgqrs_messages m
join pgqrs_workflows f on f.queue_id = m.queue_id
left join pgqrs_workflow_runs w on w.message_id = m.id
where m.id = :id;

-- name: runs
-- Newest first. A run that has not begun has no row, and is represented by its message.
select m.id, f.id, m.id, w.status, m.payload, w.output, w.error, w.created_at, w.updated_at,
       f.name, w.attempt, w.crash_count, w.crash, m.enqueued_at, w.started_at, w.completed_at,
       case when m.archived_at is null and m.consumer_worker_id is null then m.vt end
from pgqrs_messages m
join pgqrs_workflows f on f.queue_id = m.queue_id
left join pgqrs_workflow_runs w on w.message_id = m.id
where (cast(:workflow as text) is null or f.name = :workflow)
  and (cast(:status as text) is null or coalesce(cast(w.status as text), 'QUEUED') = :status)
  and m.id < :before
order by m.id desc
limit :limit;

-- name: steps
select s.id, w.message_id, s.step_name, s.status, s.input, coalesce(s.output_text, cast(s.output as text)), s.error, s.retry_at, s.created_at, s.updated_at,
       s.started_at, s.completed_at, s.retry_count, s.position, s.pid, s.cpu_seconds, s.peak_rss_bytes, s.crash_count, s.crash
from pgqrs_workflow_steps s
join pgqrs_workflow_runs w on w.id = s.run_id
where w.message_id = :message_id
order by coalesce(s.position, 0), s.id;

-- name: queues
-- Without the queues of steps that were never mapped: every supervisor has one for each step.
select q.id, q.queue_name,
       (select min(f.name) from pgqrs_workflows f where f.queue_id = q.id),
       coalesce(sum(case when m.archived_at is null and m.consumer_worker_id is null and m.vt <= {now} then 1 else 0 end), 0),
       coalesce(sum(case when m.archived_at is null and m.consumer_worker_id is null and m.vt > {now} then 1 else 0 end), 0),
       coalesce(sum(case when m.archived_at is null and m.consumer_worker_id is not null then 1 else 0 end), 0),
       coalesce(sum(case when m.archived_at is not null and m.dead_reason is null then 1 else 0 end), 0),
       coalesce(sum(case when m.dead_reason is not null then 1 else 0 end), 0)
from pgqrs_queues q
left join pgqrs_messages m on m.queue_id = q.id
where replace(q.queue_name, '.map', '') = q.queue_name or exists (select 1 from pgqrs_maps j where j.queue_id = q.id)
group by q.id, q.queue_name
order by q.queue_name;

-- name: backlog
-- Counts the waiting and held messages of some queues, up to a bound, so that a huge backlog costs
-- little.
select count(*) from (
    select 1
    from {rows: queue_id bigint}
    join pgqrs_messages m on m.queue_id = r.queue_id
    where m.archived_at is null and m.consumer_worker_id is null and m.vt <= {now}
    limit :bound
) as t;

-- name: later
select count(*) from (
    select 1
    from {rows: queue_id bigint}
    join pgqrs_messages m on m.queue_id = r.queue_id
    where m.archived_at is null and m.consumer_worker_id is null and m.vt > {now}
    limit :bound
) as t;

-- name: workers
select c.id, c.name, c.status, c.queue_id, c.heartbeat_at, q.queue_name, s.host, s.pid, s.lease_until,
       (select count(*) from pgqrs_messages m where m.consumer_worker_id = c.id and m.archived_at is null)
from pgqrs_workers c
left join pgqrs_queues q on q.id = c.queue_id
left join pgqrs_supervisors s on s.id = c.supervisor_id
where (:stopped or c.status <> 'stopped')
  and (q.queue_name is null or replace(q.queue_name, '.map', '') = q.queue_name
       or exists (select 1 from pgqrs_maps j where j.queue_id = q.id))
order by c.id;

-- name: dead
select m.id, m.queue_id, m.payload, m.vt, m.enqueued_at, m.read_ct, m.dequeued_at, m.producer_worker_id,
       m.consumer_worker_id, m.archived_at, m.dead_reason, m.claim_no, q.queue_name
from pgqrs_messages m
join pgqrs_queues q on q.id = m.queue_id
where m.dead_reason is not null
  and (cast(:queue as text) is null or q.queue_name = :queue)
order by m.id desc
limit :limit;

-- name: message
select m.id, m.queue_id, m.payload, m.vt, m.enqueued_at, m.read_ct, m.dequeued_at, m.producer_worker_id,
       m.consumer_worker_id, m.archived_at, m.dead_reason, m.claim_no
from pgqrs_messages m
where m.id = :id;
