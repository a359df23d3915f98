"""Of a run whose write the database refused, what it had written behind that is refused as well:
the run ends once, in ERROR."""

from tests.core.test_core import ERROR, checkpoint, finished, in_step


def test_a_step_and_the_end_behind_it_are_refused_together():
    scene = in_step().says(1, checkpoint(1), finished(1)).refuses("NUL")
    [end] = scene.unsaved
    assert end.settle is not None
    assert end.settle.status == ERROR
    assert 1 in scene.core.runs, "it is not left to its lease: its error is yet to be written"
    scene.saves()
    assert 1 not in scene.core.runs
    assert (scene.core.finished, scene.core.failed) == (0, 1)
