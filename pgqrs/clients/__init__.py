"""What a program uses to reach a database: the blocking and the async store, run handles, and
`store.workers()`.
"""
