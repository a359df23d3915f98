"""Inside a run, without a database: the decorators, a run's tasks, the calls of its steps, their history on a replay."""
