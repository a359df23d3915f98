-- Claiming messages.

-- name: ready
-- The messages of a queue that may be claimed: live, unclaimed and due, oldest first. `after` is
-- the watermark. During a backlog, dead index entries of rows claimed before are still there, and
-- reading them again each time would make claims slow.
select m.id as due_id
from pgqrs_messages m
where m.queue_id = :queue_id
  and m.archived_at is null
  and m.consumer_worker_id is null
  and m.vt <= {now}
  and (m.vt, m.id) > (cast(:after_vt as {time}), :after_id)
  and m.read_ct < :read_ct_max
order by m.vt, m.id
limit :limit
{lock m skip};

-- name: again
-- As `ready`, for messages that were claimed before: retries, resumed runs and released messages. A
-- claim takes them ahead of the backlog, with an index and a watermark of their own.
select m.id as due_id
from pgqrs_messages m
where m.queue_id = :queue_id
  and m.archived_at is null
  and coalesce(m.consumer_worker_id, 0) = 0
  and m.claim_no > 0
  and m.vt <= {now}
  and (m.vt, m.id) > (cast(:after_vt as {time}), :after_id)
  and m.read_ct < :read_ct_max
order by m.vt, m.id
limit :limit
{lock m skip};

-- name: lapsed
-- As `ready`, for messages that a library consumer held until a vt that has passed. A message held by
-- a 0.15 client stays with that client until it is reclaimed, whatever its vt. `client` is checked
-- because 0.15 may have claimed a message that pgqrs once held.
select m.id as due_id
from pgqrs_messages m
join pgqrs_workers h on h.id = m.consumer_worker_id
where m.queue_id = :queue_id
  and m.held_by_vt
  and m.archived_at is null
  and m.vt <= {now}
  and m.read_ct < :read_ct_max
  and h.client = 'library'
order by m.vt, m.id
limit :limit
{lock m skip};

-- name: ready_queues
-- The queues in which a claim would find a message. An idle supervisor executes this regularly, for
-- all of its queues at once.
select r.queue_id
from {rows: queue_id bigint}
where (
    select 1 from pgqrs_messages m
    where m.queue_id = r.queue_id and m.archived_at is null and m.consumer_worker_id is null and m.vt <= {now}
      and m.read_ct < :read_ct_max
    limit 1) = 1
or (
    select 1 from pgqrs_messages m join pgqrs_workers h on h.id = m.consumer_worker_id
    where m.queue_id = r.queue_id and m.held_by_vt and m.archived_at is null and m.vt <= {now}
      and m.read_ct < :read_ct_max and h.client = 'library'
    limit 1) = 1;

-- name: lease
-- The claiming consumer's supervisor, if its lease is live. The lock keeps it from being recovered
-- or retired until this transaction commits. A later recovery therefore finds the claimed messages.
-- The lease can be renewed meanwhile.
select s.id
from pgqrs_workers c
join pgqrs_supervisors s on s.id = c.supervisor_id
where c.id = :consumer_id and s.lease_until > {now}
{keep s};

-- name: next_claim_no
-- Another program may have written any value to claim_no. SQLite would turn 2^63 into a fraction,
-- and workers refuse negative numbers. Such a row starts again at 1.
case when c.claim_no between 0 and 9223372036854775806 then cast(c.claim_no as bigint) + 1 else 1 end

-- name: take
-- The end of each claim: due messages become this consumer's, if its supervisor has the lease.
-- `begun` says that there is a history. An `exists` would be enough, but the planner may hash all
-- runs for it.
update pgqrs_messages as c
set consumer_worker_id = :consumer_id, claim_no = {use next_claim_no}, read_ct = c.read_ct + 1,
    dequeued_at = {now}, held_by_vt = false, handler_began = false
from due
where c.id = due.due_id and exists (select 1 from lease)
returning id, claim_no, read_ct, payload, vt,
    (select w.id from pgqrs_workflow_runs w where w.message_id = {c of pgqrs_messages}.id) is not null as begun;

-- name: claim
-- Claims the next messages of a queue for a supervisor. Claims nothing without a live lease,
-- because nobody would release the messages. The CTE is the fence: for a joined subquery with a
-- LIMIT, the planner may update more rows than the limit. The rows are returned in no order; the
-- caller sorts by (vt, id).
with lease as (
    {use lease}
), due as (
    {use ready}
)
{use take}

-- name: claim_lapsed
with lease as (
    {use lease}
), due as (
    {use lapsed}
)
{use take}

-- name: claim_again
with lease as (
    {use lease}
), due as (
    {use again}
)
{use take}

-- name: history
-- What is recorded of these messages' runs. Returns nothing for a message that was never begun.
select w.message_id, w.status, w.attempt, w.crash_count, {seconds since w.started_at},
       s.step_name, s.position,
       case when s.status = 'ERROR' and s.retry_at is not null then 'RETRY' else cast(s.status as text) end,
       coalesce(s.output_text, cast(s.output as text)), s.error, s.retry_count,
       s.path, s.place, s.fingerprint, s.ended, {seconds since s.retry_at}
from {rows: message_id bigint}
join pgqrs_workflow_runs w on w.message_id = r.message_id
left join pgqrs_workflow_steps s on s.run_id = w.id and s.status in ('SUCCESS', 'ERROR')
order by w.message_id, s.position, s.id;

-- name: held
-- All claims that these consumers hold in the database.
select m.id, m.consumer_worker_id, m.claim_no
from {rows: consumer_id bigint}
join pgqrs_messages m on m.consumer_worker_id = r.consumer_id
where m.archived_at is null;
