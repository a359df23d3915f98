-- Statements for administration.

-- name: queue_rows
select id, queue_name from pgqrs_queues where cast(:name as text) is null or queue_name = :name order by id;

-- name: lock_queue
select q.id, q.queue_name from pgqrs_queues q where q.queue_name = :name {lock q to delete};

-- name: uses_of_queue
-- What refers to the queue and would be left without it.
select (select count(*) from pgqrs_messages m where m.queue_id = :id),
       (select count(*) from pgqrs_workers c
        where c.queue_id = :id
          and (c.supervisor_id is null or exists (select 1 from pgqrs_supervisors s where s.id = c.supervisor_id))),
       (select min(f.name) from pgqrs_workflows f where f.queue_id = :id);

-- name: forget_consumers_of_queue
-- The rows that former supervisors have left on the queue.
delete from pgqrs_workers
where queue_id = :id and supervisor_id is not null
  and not exists (select 1 from pgqrs_supervisors s where s.id = pgqrs_workers.supervisor_id);

-- name: delete_queue
delete from pgqrs_queues where id = :id;

-- name: purge_steps
delete from pgqrs_workflow_steps
where run_id in (select w.id from pgqrs_workflow_runs w join pgqrs_messages m on m.id = w.message_id where m.queue_id = :id);

-- name: purge_runs
delete from pgqrs_workflow_runs where message_id in (select m.id from pgqrs_messages m where m.queue_id = :id);

-- name: purge_messages
delete from pgqrs_messages where queue_id = :id returning id;

-- name: lock_messages_of_queue
select m.id from pgqrs_messages m where m.queue_id = :id order by m.id {lock m to delete};

-- name: spent
-- Live messages that no claim takes any more: they have reached the maximum number of deliveries,
-- and nobody holds them.
select m.id
from pgqrs_messages m
where m.archived_at is null
  and m.read_ct >= :read_ct_max
  and (m.consumer_worker_id is null or (m.held_by_vt and m.vt <= {now}))
order by m.id
limit :limit
{lock m skip};

-- name: metrics
-- Pending messages wait, including delayed ones. Locked messages are held.
select q.queue_name, count(m.id),
       coalesce(sum(case when m.id is not null and m.archived_at is null and m.consumer_worker_id is null then 1 else 0 end), 0),
       coalesce(sum(case when m.archived_at is null and m.consumer_worker_id is not null then 1 else 0 end), 0),
       coalesce(sum(case when m.archived_at is not null then 1 else 0 end), 0),
       min(case when m.archived_at is null and m.consumer_worker_id is null then m.enqueued_at end), max(m.enqueued_at)
from pgqrs_queues q
left join pgqrs_messages m on m.queue_id = q.id
where cast(:name as text) is null or q.queue_name = :name
group by q.id, q.queue_name
order by q.queue_name;

-- name: worker_counts
-- A worker is stale if it is not stopped and its last heartbeat is too old.
select coalesce(q.queue_name, ''), c.status, count(*),
       sum(case when c.status <> 'stopped' and c.heartbeat_at < {now - :timeout_s} then 1 else 0 end)
from pgqrs_workers c
left join pgqrs_queues q on q.id = c.queue_id
group by q.queue_name, c.status
order by 1, 2;

-- name: worker_ages
select c.status, c.started_at, coalesce(c.shutdown_at, cast({now} as {time}))
from pgqrs_workers c
where c.queue_id = :queue_id
order by c.started_at;

-- name: worker_rows
select c.id, c.name, c.status, c.queue_id, c.heartbeat_at, q.queue_name, s.host, s.pid, s.lease_until,
       (select count(*) from pgqrs_messages m where m.consumer_worker_id = c.id and m.archived_at is null)
from pgqrs_workers c
left join pgqrs_queues q on q.id = c.queue_id
left join pgqrs_supervisors s on s.id = c.supervisor_id
where cast(:id as bigint) is null or c.id = :id
order by c.started_at desc, c.id desc;

-- name: delete_worker
delete from pgqrs_workers where id = :id;

-- name: held_messages
select m.id, m.queue_id, m.payload, m.vt, m.enqueued_at, m.read_ct, m.dequeued_at, m.producer_worker_id,
       m.consumer_worker_id, m.archived_at, m.dead_reason, m.claim_no
from pgqrs_messages m
where m.consumer_worker_id = :worker_id and m.archived_at is null
order by m.id;

-- name: archived_messages
select m.id, m.queue_id, m.payload, m.vt, m.enqueued_at, m.read_ct, m.dequeued_at, m.producer_worker_id,
       m.consumer_worker_id, m.archived_at, m.dead_reason, m.claim_no
from pgqrs_messages m
where m.queue_id = :queue_id and m.archived_at is not null
order by m.archived_at desc, m.id desc;

-- name: held_by
-- The messages that a worker holds, locked.
select m.id from pgqrs_messages m where m.consumer_worker_id = :worker_id and m.archived_at is null order by m.id {lock m};

-- name: abandoned
-- Messages of a queue whose holder has sent no heartbeat for a while. Messages of supervisors are
-- left out: they have a lease.
select m.id
from pgqrs_messages m
join pgqrs_workers c on c.id = m.consumer_worker_id
where m.queue_id = :queue_id
  and m.archived_at is null
  and c.supervisor_id is null
  and c.heartbeat_at < {now - :older_than_s}
order by m.id
{lock m};

-- name: overdue
-- Messages that 0.15 clients have held for longer than the grace period after their vt.
select m.id
from pgqrs_messages m
join pgqrs_workers c on c.id = m.consumer_worker_id
where m.archived_at is null
  and c.client is null
  and c.supervisor_id is null
  and m.vt < {now - :grace_s}
order by m.id
limit 1000
{lock m skip};

-- name: purge_workers
-- Rows of workers that hold nothing, whose last heartbeat is too old, and that do not belong to a
-- live supervisor.
delete from pgqrs_workers
where heartbeat_at < {now - :older_than_s}
  and (:stale or status = 'stopped')
  and (supervisor_id is null
       or not exists (select 1 from pgqrs_supervisors s where s.id = pgqrs_workers.supervisor_id))
  and not exists (
      select 1 from pgqrs_messages m where m.consumer_worker_id = pgqrs_workers.id and m.archived_at is null)
returning id;

-- name: counts
select (select count(*) from pgqrs_queues),
       (select count(*) from pgqrs_workers),
       (select count(*) from pgqrs_workers where status in ('ready', 'polling')),
       (select count(*) from pgqrs_messages where archived_at is null and consumer_worker_id is null),
       (select count(*) from pgqrs_messages where archived_at is null and consumer_worker_id is not null),
       (select count(*) from pgqrs_messages where archived_at is not null);

-- name: workflow_rows
select id, name, queue_id from pgqrs_workflows order by id;

-- name: run_rows
select id, workflow_id, message_id, status, input, output, error, created_at, updated_at
from pgqrs_workflow_runs
order by created_at desc, id desc;

-- name: step_rows
select s.id, s.run_id, s.step_name, s.status, s.input, coalesce(s.output_text, cast(s.output as text)), s.error, s.retry_at, s.created_at, s.updated_at,
       s.started_at, s.completed_at, s.retry_count, s.position, s.pid, s.cpu_seconds, s.peak_rss_bytes, s.crash_count, s.crash
from pgqrs_workflow_steps s
order by s.created_at desc, s.id desc;
