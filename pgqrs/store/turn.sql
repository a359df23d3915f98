-- The writes of a supervisor: one transaction per turn, in this order. `fence` comes first. It
-- locks the messages concerned, in the order of their ids, until the end of the transaction. A
-- message that it does not return no longer belongs to the writer, and nothing is written for it.
-- Under READ COMMITTED only a lock makes this check reliable: with a plain join, a late checkpoint
-- was committed after a takeover. A turn that only ends handlers consists of `archive_held` alone.
--
-- The coalesce keeps the planner away from the index of held messages. If the statistics are older
-- than the first held message, the index seems to have one entry, and each message would be
-- compared with every held one.
--
-- No statement waits long for another session's lock. The fence skips messages that another session
-- has locked, and `still_held` returns the skipped ones: their writes are put off to a later turn,
-- and all other writes proceed. For the other tables, and for `archive_held`, {wait briefly} limits
-- each wait for a lock. After such a failure the turn is executed in parts, so that only the writes
-- that met the lock are put off.

-- name: fence
select m.id, m.claim_no
from {rows: message_id bigint, consumer_id bigint, claim_no bigint}
join pgqrs_messages m on m.id = r.message_id and coalesce(m.consumer_worker_id, 0) = r.consumer_id and m.claim_no = r.claim_no
where m.archived_at is null and {wait briefly}
order by m.id
{lock m skip};

-- name: still_held
-- Asked for messages that the fence has not returned: if their claims are live, only a lock has
-- hidden them from the fence.
select m.id, m.claim_no
from {rows: message_id bigint, consumer_id bigint, claim_no bigint}
join pgqrs_messages m on m.id = r.message_id and coalesce(m.consumer_worker_id, 0) = r.consumer_id and m.claim_no = r.claim_no
where m.archived_at is null;

-- name: archived_by
-- After a commit of unknown outcome: an archived message that carries the claim was ended by this
-- supervisor.
select m.id, m.claim_no, w.status
from {rows: message_id bigint, consumer_id bigint, claim_no bigint}
join pgqrs_messages m on m.id = r.message_id and coalesce(m.consumer_worker_id, 0) = r.consumer_id and m.claim_no = r.claim_no
left join pgqrs_workflow_runs w on w.message_id = m.id
where m.archived_at is not null;

-- name: begin_runs
-- A run that ends in the turn in which it begins is written once. `settle_runs` then finds that it
-- has ended, and changes nothing.
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
-- A checkpoint after a crash: the budget is for deaths without a checkpoint between them.
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
-- The step that was executing when its worker died. The death is noted in the step's row, which
-- stays open. A turn of unknown outcome is repeated under the same claim, but the death is noted
-- once: the descriptions of two deaths differ.
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
-- A run whose cancellation was requested ends as CANCELLED, unless it failed first. A run that has
-- ended does not end again.
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
-- The current statuses of runs that no earlier statement has returned. A cancellation that the
-- fence waited for is visible here, but not in the fence's own snapshot.
select w.message_id, w.status
from {rows: message_id bigint}
join pgqrs_workflow_runs w on w.message_id = r.message_id;

-- name: note_handlers
-- The handlers of these plain messages have begun. From now on, a death of the supervisor is
-- charged to them.
update pgqrs_messages as m
set handler_began = true
from {rows: message_id bigint}
where m.id = r.message_id;

-- name: release
-- Releases messages, at their old place or some seconds from now. A run that was cancelled
-- meanwhile does not wait for the end of its pause or back-off.
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
-- `fence` and `archive` in one, for messages without any other write: an update locks the rows that
-- it writes, and checks them again after waiting. Its rows are in the order of their ids, like
-- those of the fence.
update pgqrs_messages as m
set archived_at = {now}, dead_reason = r.dead_reason
from {rows: message_id bigint, consumer_id bigint, claim_no bigint, dead_reason text}
where m.id = r.message_id and coalesce(m.consumer_worker_id, 0) = r.consumer_id and m.claim_no = r.claim_no
  and m.archived_at is null and {wait briefly}
returning {m of pgqrs_messages}.id, {m of pgqrs_messages}.claim_no;
