-- Nothing is ever in it here: `output` is text already. The comments stand in the PostgreSQL twin of this file.

alter table pgqrs_workflow_steps add column output_text text;
