-- What an S3 store asks of its local copy, which is SQLite's.

-- name: leases
select id, name, lease_until from pgqrs_supervisors;

-- name: keep_lease
update pgqrs_supervisors set lease_until = :until where id = :id and name = :name and lease_until < :until;

-- name: anything_held
-- Whether this supervisor's lease protects anything that another could take.
select exists (
    select 1 from pgqrs_messages m join pgqrs_workers c on c.id = m.consumer_worker_id
    where m.archived_at is null and c.supervisor_id = :id);

-- name: lapsed_holders
-- Those whose lease ran out and who hold something, and those whose lease ran out `ago_s` before now.
select s.id from pgqrs_supervisors s
where s.lease_until <= {now}
  and (s.lease_until <= {now - :ago_s}
       or exists (select 1 from pgqrs_messages m join pgqrs_workers c on c.id = m.consumer_worker_id
                  where m.archived_at is null and c.supervisor_id = s.id))
order by s.id;

-- name: end_lease
-- A supervisor that is known to be gone: as if its lease had run out `ago_s` before now.
update pgqrs_supervisors set lease_until = {now - :ago_s} where id = :id;

-- name: skip_ids
-- What others wrote in versions that this copy has not seen is lost with the object. Their ids are not given again.
update sqlite_sequence set seq = seq + :count where name like 'pgqrs@_%' escape '@';
