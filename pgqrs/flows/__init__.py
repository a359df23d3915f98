"""Code that executes inside a run, without a database: decorators, tasks, step calls, replay."""
