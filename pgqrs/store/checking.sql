-- Checks before a database is used: the privileges of the role, and what other roles may do.
-- PostgreSQL only.

-- name: lacking_rights
select r.table_name, r.privilege
from {rows: table_name text, privilege text}
where not has_table_privilege({schema} || '.' || r.table_name, r.privilege)
order by 1, 2;

-- name: lacking_sequences
select s.name
from (select r.table_name, pg_get_serial_sequence({schema} || '.' || r.table_name, 'id') as name
      from {rows: table_name text}) as s
where not has_sequence_privilege(s.name, 'usage')
order by 1;

-- name: who_we_are
select cast(current_user as text), current_setting('server_encoding');

-- name: creators
-- Roles that may create objects in the schema, except its owner, the current role and superusers.
select distinct coalesce(cast(a.rolname as text), 'PUBLIC')
from (select g.grantee, o.rolname, o.rolsuper, n.nspowner, n.oid
      from pg_namespace n
      cross join lateral aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) as g
      left join pg_roles o on o.oid = g.grantee
      where n.oid = to_regnamespace({schema}) and g.privilege_type = 'CREATE') as a
where a.grantee <> a.nspowner
  and coalesce(a.rolname, '') <> current_user
  and not coalesce(a.rolsuper, false)
order by 1;

-- name: filtered_tables
-- Tables in which row-level security hides rows from the current role.
select r.table_name
from {rows: table_name text}
where row_security_active(to_regclass({schema} || '.' || r.table_name))
order by 1;
