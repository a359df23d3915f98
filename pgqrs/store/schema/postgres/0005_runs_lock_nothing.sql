-- To begin a run locked its workflow's row against deletion, which nobody does: a third of what it cost, and where several
-- supervisors begin runs of one workflow, they share that lock.

alter table pgqrs_workflow_runs drop constraint if exists pgqrs_workflow_runs_workflow_id_fkey;
