-- Supervisors, their leases and their consumers.

-- name: register_supervisor
insert into pgqrs_supervisors (name, host, boot_id, pid_ns, pid, pid_started, started_at, lease_until)
values (:name, :host, :boot_id, :pid_ns, :pid, :pid_started, {now}, {now + :lease_s})
returning id;

-- name: register_consumer
insert into pgqrs_workers (name, queue_id, started_at, heartbeat_at, status, supervisor_id, client)
values (:name, :queue_id, {now}, {now}, 'polling', :supervisor_id, 'supervisor')
returning id;

-- name: renew_lease
-- Returns no row if the lease has expired: other supervisors may hold its messages.
update pgqrs_supervisors
set lease_until = {now + :lease_s}
where id = :id and lease_until > {now}
returning id;

-- name: beat_consumers
-- Skips a row that another session has locked, because the lease must not wait for it.
update pgqrs_workers
set heartbeat_at = {now}
where id in (
    select c.id from pgqrs_workers c where c.supervisor_id = :id and c.shutdown_at is null order by c.id {lock c skip});

-- name: watched_supervisors
-- Supervisors with an expired lease on any host, and all supervisors of this host, whose death may
-- be detected earlier.
select w.id, w.pid, w.pid_started, w.near, w.over
from (
    select s.id, s.pid, s.pid_started, s.lease_until <= {now} as over,
           s.host = :host and s.boot_id = :boot_id and s.pid_ns = :pid_ns as near
    from pgqrs_supervisors s
) as w
where w.near or w.over;

-- name: expire_lease
-- Ends the lease of a dead supervisor now.
update pgqrs_supervisors set lease_until = {now} where id = :id;

-- name: anything_expired
select 1 from pgqrs_supervisors where lease_until <= {now} limit 1;

-- name: expired_supervisors
-- Skips supervisors that are claiming at this moment. A later call retires them.
select s.id from pgqrs_supervisors s where s.lease_until <= {now} order by s.id {lock s to delete skip};

-- name: lock_supervisor
-- Waits until the supervisor is not claiming.
select s.id from pgqrs_supervisors s where s.id = :id {lock s to delete};

-- name: bury_of_supervisor
-- Plain messages of a dead supervisor whose handler had begun and that have no deliveries left.
-- Here and below, a message that another session has locked is left for the next call.
with spent as (
    select m.id as spent_id
    from pgqrs_messages m
    where m.archived_at is null
      and m.read_ct >= :read_ct_max
      and m.handler_began
      and m.consumer_worker_id in (select c.id from pgqrs_workers c where c.supervisor_id = :id)
      and m.queue_id not in (select f.queue_id from pgqrs_workflows f)
    order by m.id
    {lock m skip}
)
update pgqrs_messages as m
set archived_at = {now}, dead_reason = :reason
from spent
where m.id = spent.spent_id
returning id;

-- name: release_of_supervisor
-- A delivery is charged if a handler had begun. Runs have budgets of their own.
with held as (
    select m.id as held_id,
           m.handler_began and m.queue_id not in (select f.queue_id from pgqrs_workflows f) as charged
    from pgqrs_messages m
    where m.archived_at is null
      and m.consumer_worker_id in (select c.id from pgqrs_workers c where c.supervisor_id = :id)
      and not (m.read_ct >= :read_ct_max and m.handler_began
               and m.queue_id not in (select f.queue_id from pgqrs_workflows f))
    order by m.id
    {lock m skip}
)
update pgqrs_messages as m
set consumer_worker_id = null,
    read_ct = case when m.read_ct > 0 and not held.charged then m.read_ct - 1 else m.read_ct end
from held
where m.id = held.held_id
returning id;

-- name: left_of_supervisor
-- Whether messages of the supervisor are left, because another session has locked them.
select 1
where exists (
    select 1 from pgqrs_messages m
    where m.archived_at is null
      and m.consumer_worker_id in (select c.id from pgqrs_workers c where c.supervisor_id = :id));

-- name: stop_consumers
update pgqrs_workers set status = 'stopped', shutdown_at = {now} where supervisor_id = :id and shutdown_at is null;

-- name: forget_supervisor
delete from pgqrs_supervisors where id = :id;

-- name: of_the_future
-- Live messages that were enqueued or last claimed at a time in the future: the clock was set back
-- since.
select m.id, {seconds since m.enqueued_at}, {seconds since m.dequeued_at}
from pgqrs_messages m
where m.archived_at is null and m.vt > {now} and (m.enqueued_at > {now} or m.dequeued_at > {now});

-- name: bring_back
-- Moves their due times back with the clock, once.
update pgqrs_messages as m
set vt = {m.vt - r.back_s},
    enqueued_at = case when m.enqueued_at > {now} then {now} else m.enqueued_at end,
    dequeued_at = case when m.dequeued_at > {now} then {now} else m.dequeued_at end
from {rows: message_id bigint, back_s float}
where m.id = r.message_id;
