-- The text of a step's result, where jsonb changes it: jsonb sorts the keys of an object, and has
-- no exponents. A replay must return what the step returned.

alter table pgqrs_workflow_steps add column output_text text;
