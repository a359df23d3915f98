"""What a program holds of a database: the blocking and the async store, handles of runs, `store.workers()`."""
