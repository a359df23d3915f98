-- The call of a step that a row belongs to: the task that made the call, the number of the call in
-- that task, a fingerprint of its arguments, and the order in which the workflow received the
-- results. Null in rows of older versions.

alter table pgqrs_workflow_steps add column path text;
alter table pgqrs_workflow_steps add column place integer;
alter table pgqrs_workflow_steps add column fingerprint bigint;
alter table pgqrs_workflow_steps add column ended integer;
