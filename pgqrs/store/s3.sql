-- What an S3 store asks of its local copy, which is SQLite's.

-- name: leases
select id, name, lease_until from pgqrs_supervisors;

-- name: keep_lease
update pgqrs_supervisors set lease_until = :until where id = :id and name = :name and lease_until < :until;

-- name: anything_held
-- Whether a supervisor's lease protects anything that another could take.
select exists (
    select 1 from pgqrs_messages m join pgqrs_workers c on c.id = m.consumer_worker_id
    where m.archived_at is null and c.supervisor_id is not null);
