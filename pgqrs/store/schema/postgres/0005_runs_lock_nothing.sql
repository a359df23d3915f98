-- Because of this foreign key, beginning a run locked its workflow's row against deletion, which
-- never happens. The lock was a third of the cost of beginning a run, and supervisors that begin
-- runs of one workflow share it.

alter table pgqrs_workflow_runs drop constraint if exists pgqrs_workflow_runs_workflow_id_fkey;
