-- The PostgreSQL file of the same name has the comments.

alter table pgqrs_workflow_steps add column path text;
alter table pgqrs_workflow_steps add column place integer;
alter table pgqrs_workflow_steps add column fingerprint integer;
alter table pgqrs_workflow_steps add column ended integer;
