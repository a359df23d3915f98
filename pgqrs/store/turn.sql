-- What a supervisor writes: one transaction a turn, in this order. `fence` goes first and locks every message concerned,
-- in the order of their ids, for the rest of the transaction; what it does not return is no longer the writer's, and
-- nothing is written for it. Under READ COMMITTED only a lock makes that check hold: a plain join committed a late
-- checkpoint after a takeover. A turn that only ends what handlers did is `archive_held` alone. The coalesce keeps the
-- planner from the index of all that is held: where statistics are from before anything was, that seems to have one entry,
-- and each message is compared with every one that is held.
--
-- No statement waits for somebody else's lock for long. The fence skips a message that somebody else has locked, and
-- `still_held` says which ones it skipped: their writes are put off to a later turn, and all others go on. For the other
-- tables, and for `archive_held`, {wait briefly} limits each wait for a lock of this transaction; after such a failure the
-- turn is made again in parts, so that only the writes that met the lock are put off.

-- name: fence
select m.id, m.claim_no
from {rows: message_id bigint, consumer_id bigint, claim_no bigint}
join pgqrs_messages m on m.id = r.message_id and coalesce(m.consumer_worker_id, 0) = r.consumer_id and m.claim_no = r.claim_no
where m.archived_at is null and {wait briefly}
order by m.id
{lock m skip};

-- name: still_held
-- Asked for what the fence has not returned: these claims are live, so that only a lock has kept their messages from it.
select m.id, m.claim_no
from {rows: message_id bigint, consumer_id bigint, claim_no bigint}
join pgqrs_messages m on m.id = r.message_id and coalesce(m.consumer_worker_id, 0) = r.consumer_id and m.claim_no = r.claim_no
where m.archived_at is null;

-- name: archived_by
-- After a commit whose outcome nobody saw: a message that carries our claim and is archived was ended by us.
select m.id, m.claim_no, w.status
from {rows: message_id bigint, consumer_id bigint, claim_no bigint}
join pgqrs_messages m on m.id = r.message_id and coalesce(m.consumer_worker_id, 0) = r.consumer_id and m.claim_no = r.claim_no
left join pgqrs_workflow_runs w on w.message_id = m.id
where m.archived_at is not null;

-- name: begin_runs
-- A run that ends in the turn in which it begins is written once: `settle_runs` then finds it ended, and has nothing to do.
insert into pgqrs_workflow_runs as w
    (workflow_id, message_id, status, input, output, error, created_at, updated_at, started_at, completed_at, worker_id, attempt)
select r.workflow_id, r.message_id, cast(coalesce(r.ended, 'RUNNING') as {status}), m.payload, r.result, r.failure,
       {now}, {now}, {now}, case when r.ended is not null then {now} end, r.consumer_id, r.attempt
from {rows: workflow_id bigint, message_id bigint, consumer_id bigint, attempt int, ended text, result json, failure json}
join pgqrs_messages m on m.id = r.message_id
where true
on conflict (message_id) do update
set status = case when w.status = 'CANCELLING' then w.status else 'RUNNING' end,
    started_at = coalesce(w.started_at, excluded.started_at),
    updated_at = excluded.updated_at,
    paused_at = null,
    error = null,
    worker_id = excluded.worker_id,
    attempt = excluded.attempt
where w.status not in ('SUCCESS', 'ERROR', 'CANCELLED')
returning {w of pgqrs_workflow_runs}.message_id, {w of pgqrs_workflow_runs}.status;

-- name: save_steps
-- A recorded checkpoint never changes.
insert into pgqrs_workflow_steps as s
    (run_id, step_name, status, output, error, created_at, updated_at, started_at, completed_at,
     retry_count, retry_at, last_retry_at, position, pid, cpu_seconds, peak_rss_bytes, output_text,
     path, place, fingerprint, ended)
select w.id, r.step_name, cast(r.status as {status}), r.output, r.error, {now}, {now}, {now - r.seconds}, {now},
       r.retry_count, {now + r.retry_in_s}, case when r.retry_count > 0 then {now} end,
       r.position, r.pid, r.cpu_seconds, r.peak_rss_bytes, r.output_text,
       r.path, r.place, r.fingerprint, r.ended
from {rows: message_id bigint, step_name text, status text, output json, error json, seconds float, retry_count int, retry_in_s float, position int, pid bigint, cpu_seconds float, peak_rss_bytes bigint, output_text text, path text, place int, fingerprint bigint, ended int}
join pgqrs_workflow_runs w on w.message_id = r.message_id
where true
on conflict (run_id, step_name) do update
set status = excluded.status, output = excluded.output, output_text = excluded.output_text, error = excluded.error,
    updated_at = excluded.updated_at, started_at = excluded.started_at, completed_at = excluded.completed_at,
    retry_count = excluded.retry_count, retry_at = excluded.retry_at, last_retry_at = excluded.last_retry_at,
    position = excluded.position, pid = excluded.pid, cpu_seconds = excluded.cpu_seconds,
    peak_rss_bytes = excluded.peak_rss_bytes,
    path = excluded.path, place = excluded.place, fingerprint = excluded.fingerprint, ended = excluded.ended
where s.status <> 'SUCCESS';

-- name: forgive_crashes
-- A checkpoint after a crash: the budget is for deaths without one between them.
update pgqrs_workflow_runs as w
set crash_count = 0
from {rows: message_id bigint}
where w.message_id = r.message_id and w.crash_count > 0;

-- name: crash_runs
update pgqrs_workflow_runs as w
set crash_count = r.crash_count, crash = r.crash, updated_at = {now}
from {rows: message_id bigint, crash_count int, crash json}
where w.message_id = r.message_id;

-- name: crash_steps
-- The step that was on the CPU when its worker died: noted in its row, which stays open. Once, though a turn whose end is unknown
-- is repeated under the same claim: two deaths differ in what they say.
insert into pgqrs_workflow_steps as s
    (run_id, step_name, status, created_at, updated_at, position, pid, cpu_seconds, peak_rss_bytes, crash_count, crash)
select w.id, r.step_name, cast('RUNNING' as {status}), {now}, {now}, r.position, r.pid, r.cpu_seconds, r.peak_rss_bytes, 1, r.crash
from {rows: message_id bigint, step_name text, position int, pid bigint, cpu_seconds float, peak_rss_bytes bigint, crash json}
join pgqrs_workflow_runs w on w.message_id = r.message_id
where true
on conflict (run_id, step_name) do update
set updated_at = excluded.updated_at, pid = excluded.pid, cpu_seconds = excluded.cpu_seconds,
    peak_rss_bytes = excluded.peak_rss_bytes, crash = excluded.crash,
    crash_count = s.crash_count + case when s.crash = excluded.crash then 0 else 1 end
where s.status <> 'SUCCESS';

-- name: settle_runs
-- What was asked to be cancelled ends cancelled, unless it failed first; a run that ended does not end again.
update pgqrs_workflow_runs as w
set status = cast(case when w.status = 'CANCELLING' and r.wanted = 'RUNNING' then 'CANCELLING'
                       when w.status = 'CANCELLING' and r.wanted = 'PAUSED' then 'CANCELLING'
                       when w.status = 'CANCELLING' and r.wanted = 'SUCCESS' then 'CANCELLED'
                       else r.wanted end as {status}),
    output = case when w.status = 'CANCELLING' then null else r.result end,
    error = r.failure,
    paused_at = case when r.wanted = 'PAUSED' then {now} end,
    completed_at = case when r.wanted in ('SUCCESS', 'ERROR', 'CANCELLED') then {now} end,
    updated_at = {now}
from {rows: message_id bigint, wanted text, result json, failure json}
where w.message_id = r.message_id and w.status not in ('SUCCESS', 'ERROR', 'CANCELLED')
returning {w of pgqrs_workflow_runs}.message_id, {w of pgqrs_workflow_runs}.status;

-- name: run_states
-- What the runs are by now, where no statement before has said it: a cancel that the fence had to wait for shows here, and not in
-- the fence's own snapshot.
select w.message_id, w.status
from {rows: message_id bigint}
join pgqrs_workflow_runs w on w.message_id = r.message_id;

-- name: note_handlers
-- The handlers of these plain messages have begun: from now on a death of the supervisor is charged to them.
update pgqrs_messages as m
set handler_began = true
from {rows: message_id bigint}
where m.id = r.message_id;

-- name: release
-- Back to its queue, at its old place or some seconds from now. A run that was cancelled meanwhile must not wait out its pause
-- or its back-off first.
update pgqrs_messages as m
set consumer_worker_id = null,
    vt = case when r.delay_s is null
                or (select w.status from pgqrs_workflow_runs w where w.message_id = m.id) = 'CANCELLING'
              then m.vt else {now + r.delay_s} end,
    read_ct = case when r.refund and m.read_ct > 0 then m.read_ct - 1 else m.read_ct end
from {rows: message_id bigint, delay_s float, refund bool}
where m.id = r.message_id;

-- name: archive
update pgqrs_messages as m
set archived_at = {now}, dead_reason = r.dead_reason
from {rows: message_id bigint, dead_reason text}
where m.id = r.message_id;

-- name: archive_held
-- `fence` and `archive` in one, for messages of which there is nothing else to write: an update locks what it writes, and asks again
-- after having waited. Its rows are in the order of their ids, as the fence's are.
update pgqrs_messages as m
set archived_at = {now}, dead_reason = r.dead_reason
from {rows: message_id bigint, consumer_id bigint, claim_no bigint, dead_reason text}
where m.id = r.message_id and coalesce(m.consumer_worker_id, 0) = r.consumer_id and m.claim_no = r.claim_no
  and m.archived_at is null and {wait briefly}
returning {m of pgqrs_messages}.id, {m of pgqrs_messages}.claim_no;
