-- Statements for a client that drives a run by hand, step by step. Each operation locks the run's
-- message first, as a supervisor's turn does, so that the holder does not change until the commit.

-- name: holder
-- The current holder of a message. Asked after the message is locked.
select m.consumer_worker_id, m.claim_no, m.archived_at, h.client
from pgqrs_messages m
left join pgqrs_workers h on h.id = m.consumer_worker_id
where m.id = :id;

-- name: run_of_message
select id, workflow_id, message_id, status, input, output, error from pgqrs_workflow_runs where message_id = :message_id;

-- name: run_by_id
select id, workflow_id, message_id, status, input, output, error from pgqrs_workflow_runs where id = :id;

-- name: make_run
-- Inserts a run as 0.15 does: its input is the payload of the message.
insert into pgqrs_workflow_runs (workflow_id, message_id, status, input, created_at, updated_at)
select :workflow_id, m.id, cast('QUEUED' as {status}), m.payload, {now}, {now}
from pgqrs_messages m
where m.id = :message_id
on conflict (message_id) do nothing;

-- name: move_run
update pgqrs_workflow_runs
set status = cast(:status as {status}), output = cast(:output as {json}), error = cast(:error as {json}), updated_at = {now},
    started_at = case when :starts then coalesce(started_at, {now}) else started_at end,
    paused_at = case when :pauses then {now} end,
    completed_at = case when :ends then {now} end,
    worker_id = coalesce(:worker_id, worker_id)
where id = :id;

-- name: step_by_name
select id, status, coalesce(output_text, cast(output as text)), error, retry_at, retry_count, (retry_at is null or retry_at <= {now})
from pgqrs_workflow_steps where run_id = :run_id and step_name = :name;

-- name: open_step
-- Begins a step, for the first time or again. If another call has inserted the row meanwhile, that
-- row counts.
insert into pgqrs_workflow_steps as s (run_id, step_name, status, created_at, updated_at, started_at, retry_count)
values (:run_id, :name, cast('RUNNING' as {status}), {now}, {now}, {now}, 0)
on conflict (run_id, step_name) do update
set status = excluded.status, error = null, retry_at = null, started_at = excluded.started_at, updated_at = excluded.updated_at
where s.status <> 'SUCCESS';

-- name: end_step
-- A recorded checkpoint never changes.
update pgqrs_workflow_steps
set status = cast(:status as {status}), output = cast(:output as {json}), output_text = :output_text,
    error = cast(:error as {json}), completed_at = {now}, updated_at = {now}, retry_count = :retry_count, retry_at = {now + :retry_in_s},
    last_retry_at = case when :retry_count > 0 then {now} end
where run_id = :run_id and step_name = :name and status <> 'SUCCESS';

-- name: due_again
-- When a run can continue: the next retry of its steps, and its resume time if it is paused.
select w.status, w.paused_at, w.error,
       (select min(s.retry_at) from pgqrs_workflow_steps s where s.run_id = w.id and s.status = 'ERROR')
from pgqrs_workflow_runs w
where w.id = :id;
