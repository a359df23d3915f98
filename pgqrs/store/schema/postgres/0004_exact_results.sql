-- A step's result as it was written, where jsonb keeps it in another way: it sorts an object's keys, and knows no exponents. A replay
-- must find what the step returned.

alter table pgqrs_workflow_steps add column output_text text;
