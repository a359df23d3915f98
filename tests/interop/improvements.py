"""What a program written for 0.15.3 sees differently, and why: see test_every_call.py and docs/compatibility.md.

Labels of every_call, set apart by bars, by the reason.
"""

TOLD = {
    "Enum members can be hashed and ordered, and every setting assigned.": """
        names.hash | names.order | configuration.set dsn | configuration.get dsn
    """,
    "A setting that could not work is refused where it is made.": """
        configuration.schema empty | configuration.set schema empty | configuration.schema digit | configuration.set schema
        digit | configuration.schema dash | configuration.set schema dash | configuration.schema 64 | configuration.set
        schema 64 | configuration.schema umlaut | configuration.set schema umlaut | configuration.made of no connections
    """,
    "A value of a wrong type or range is refused by an error of ours that says what would do.": """
        configuration.made of number | configuration.made of text for a number | configuration.made of negative |
        configuration.set a wrong type | configuration.set a negative | configuration.set a list of numbers |
        builder.a number for a handler | policies.backoff negative repr | policies.backoff text repr | policies.policy negative repr | queues.named a number
        | producing.negative delay | producing.text for a delay | times.number |
        iterating.negative interval | builder.negative batch | builder.negative interval | results.pause for a past time
    """,
    "What is wrong with the database is said: SchemaError, or ValidationError, and in words of ours.": """
        connecting.other scheme (text) | connecting.no scheme (text) | connecting.empty (text) | connecting.no such database
        (text) | installing.verify before (text) | installing.queue before (text) | installing.install in no schema |
        queues.delete a workflow's
    """,
    "produce and trigger register no worker.": """
        installing.first trigger | queues.delete with a message (text) | producing.producers of produce | producing.workers
        | workflow_builders.trigger | workflow_builders.with an id | workflow_builders.trigger list |
        workflow_builders.trigger text | workflow_builders.trigger null | workflow_builders.trigger input
    """,
    "A name has 1 to 255 characters, for a queue as for a workflow.": """
        queues.named empty | queues.named long | workflow_builders.empty name | workflow_builders.long name
    """,
    "What is not there is named: WorkerNotFoundError and WorkflowNotFoundError where 0.15.3 raised PgqrsConnectionError.": """
        workers.get none | workflow_builders.trigger none | workflow_builders.by a wrong name | run_builder.of a plain
        message
    """,
    "Whole numbers are exact, however large; from 2**63 on 0.15.3 read them back as floats.": """
        payloads.bigger int read | payloads.unsigned read | payloads.huge int read | results.bigger int result |
        results.unsigned result | results.huge int result
    """,
    "What is no JSON is refused with SerializationError.": """
        payloads.nul sent | results.nul success
    """,
    "One text for one mistake.": """
        limits.size batch (text) | limits.size produce_batch (text) | limits.string 4 enqueue (text) | limits.string 4
        produce (text) | limits.string delayed (text) | rates.batch over the burst (text)
    """,
    "What produce_batch sends is not held against a rate that begins and ends with the call.": """
        rates.produce a batch over the burst
    """,
    "An empty batch is no error, as in enqueue_batch.": """
        producing.produce an empty batch
    """,
    "A float stays a float, however large.": """
        payloads.1e16 read | results.1e16 result
    """,
    "Fractions of a second count, and an argument may be left out.": """
        producing.half a second | workflow_builders.admin's without argument | results.pause for half a second |
        retries.fraction: due
    """,
    "archive says what happened to each message; 0.15.3 said True, whatever happened, here and there.": """
        ending.delete archived | ending.module archive again | ending.module archive_batch |  ending.module archive another's | iterating.archive again | iterating.archive none | ending.archived 1
    """,
    "A message comes back when its lock is over, and belongs to who takes it then.": """
        worn_out.after its lock, to another | worn_out.after its lock, archive
    """,
    "A default_lock_time_seconds that is set is honoured.": """
        worn_out.lock time that is set
    """,
    "Closing an iterator gives back what it has in hand, is done once, and ends the iteration.": """
        iterating.close | iterating.statuses then | iterating.given back | iterating.close after close | iterating.close
        with one in hand | iterating.next after close
    """,
    "A poll ends with the exception of its handler, and leaves its worker Ready.": """
        polling.failing | polling.failing: status after | polling.failing batch | polling.workers
    """,
    "A poll holds its messages as long as dequeue does, at a given time too (0.15.3: 5 s).": """
        polling_at.handled
    """,
    "Resuming a run clears the text of its pause.": """
        runs.paused start: then | runs.paused success: then | runs.paused complete: then
    """,
    "What has ended stays as it ended: the first word counts.": """
        runs.success complete: then | runs.success fail | runs.success fail: then | runs.success pause | runs.success pause:
        then | runs.error success | runs.error success: then | runs.error complete | runs.error complete: then | runs.error
        pause | runs.error pause: then | steps.acquire when done twice | steps.acquire when done and failed | steps.acquire
        d | steps.record a | steps.record d
    """,
    "The result of a run may be what our steps may return: bytes, sets, times.": """
        results.bytes success | results.bytes result | results.set success | results.set result | results.datetime success |
        results.datetime result
    """,
    "The text of a failure for good is kept as it is; 0.15.3 put it into quotes.": """
        steps.acquire when failed (text) | steps.acquire f (text) | steps.record b | steps.record e | steps.record f |
        decorated_failures.plain: step | decorated_failures.other: step
    """,
    "A try that is to be repeated takes no delivery.": """
        polling_retries.deliveries
    """,
    "with_time holds for the steps of the run.": """
        retries.run's time: due | retries.run's time: at 6
    """,
    "A run or a step is written only by who holds its message: ClaimLostError.": """
        lost_claims.step by the loser | lost_claims.new step by the loser | lost_claims.success by the loser |
        lost_claims.fail by the loser | lost_claims.pause by the loser
    """,
    "The calls of a run return nothing, as its .pyi says; 0.15.3 returned True.": """
        calls_return.start | calls_return.pause | calls_return.complete | calls_return.success | calls_return.fail
    """,
    "A call returns a coroutine where 0.15.3 returned a future.": """
        calls_return.connect gives a future | calls_return.method gives a coroutine | calls_return.method gives a future |
        calls_return.function gives a coroutine | calls_return.function gives a future
    """,
    "Reading a payload twice gives the same object.": """
        records.payload is made anew
    """,
}

IMPROVEMENTS = {why: [" ".join(label.split()) for label in labels.split("|")] for why, labels in TOLD.items()}
