-- Which call of a step a row is: the task that made the call, the call's number in that task, a fingerprint of its arguments,
-- and the order in which the run's results were handed to its workflow. Null in the rows of older versions.

alter table pgqrs_workflow_steps add column path text;
alter table pgqrs_workflow_steps add column place integer;
alter table pgqrs_workflow_steps add column fingerprint bigint;
alter table pgqrs_workflow_steps add column ended integer;
