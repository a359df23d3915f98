-- Always null on SQLite, where `output` is text already. The PostgreSQL file of the same name has
-- the comments.

alter table pgqrs_workflow_steps add column output_text text;
