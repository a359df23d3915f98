-- Statements of an S3 store for its local copy, in SQLite's dialect only.

-- name: leases
select id, name, lease_until from pgqrs_supervisors;

-- name: keep_lease
update pgqrs_supervisors set lease_until = :until where id = :id and name = :name and lease_until < :until;

-- name: anything_held
-- Whether this supervisor's lease protects anything that another supervisor could claim.
select exists (
    select 1 from pgqrs_messages m join pgqrs_workers c on c.id = m.consumer_worker_id
    where m.archived_at is null and c.supervisor_id = :id);

-- name: lapsed_holders
-- The supervisors with an expired lease that hold messages, and those whose lease expired `ago_s`
-- before now.
select s.id from pgqrs_supervisors s
where s.lease_until <= {now}
  and (s.lease_until <= {now - :ago_s}
       or exists (select 1 from pgqrs_messages m join pgqrs_workers c on c.id = m.consumer_worker_id
                  where m.archived_at is null and c.supervisor_id = s.id))
order by s.id;

-- name: end_lease
-- Makes the lease of a dead supervisor end `ago_s` before now.
update pgqrs_supervisors set lease_until = {now - :ago_s} where id = :id;

-- name: skip_ids
-- The writes of others in versions that this copy has not seen are lost with the object. Their ids
-- must not be used again.
update sqlite_sequence set seq = seq + :count where name like 'pgqrs@_%' escape '@';
