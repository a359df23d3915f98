"""Finds runs that wait for a run that could never end. A pure function."""

from collections.abc import Mapping

from supervisors.core.state import Run, Waited, Worker

# The most blocked workers of a kind that get a substitute. A worker is blocked while a run in it
# waits for another run.
WAITING_MAX = 16


def hopeless(
    worker: Worker, run: Run, waited: Waited, runs: Mapping[int, Run], workers: Mapping[int, Worker]
) -> str:
    """Returns why the run `waited`, for which `run` waits, could never end. Returns an empty text
    if it can.
    """
    text = f"run {run.id} waits for run {waited.run}"
    then = waited
    for _ in range(len(runs) + 1):
        if then.run == run.id:
            return f"{text}, which waits for it in turn" if then is not waited else f"{text}, which is itself"
        next_one = runs.get(then.run)
        if next_one is None or next_one.waits_for is None:
            break
        then = next_one.waits_for
    if not waited.blocks:
        return ""
    blocked = sum(w.blocked and w.kind == worker.kind for w in workers.values())
    if blocked > WAITING_MAX:
        return (
            f"{text}, and so do runs in {WAITING_MAX} other workers of this supervisor, "
            "which starts no more than so many in their place; let the workflow end and "
            "another one go on from there, or wait in an async workflow"
        )
    if not worker.gated and waited.run in worker.runs and worker.runs[waited.run].started:
        return (
            f"{text}, which has begun in the same worker and "
            "cannot go on there; start more workers (--workers)"
        )
    return ""
