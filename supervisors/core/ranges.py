"""How much of a map's range one worker gets: functions of a run, nothing decided or kept.

A range is claimed as a message. What a worker would not finish soon is cut off, and becomes a
message that any worker of any supervisor may claim.
"""

from supervisors import wire
from supervisors.core.state import Run

# How long the items of one worker's range should take together.
RANGE_S = 1.0
# The items of a range whose duration is unknown.
UNKNOWN = 16


def share_of(run: Run, item_s: float | None) -> int:
    """Before which item a claimed range is cut, counted from its first one. `item_s`: how long an
    item takes, or None if that is unknown.
    """
    most = UNKNOWN if item_s is None else max(1, int(RANGE_S / max(item_s, 1e-6)))
    known = {s.position for s in run.claimed.steps}
    for position in range(run.end):
        if position not in known:
            if not most:
                return position
            most -= 1
    return run.end


def half_of(run: Run, position: int, stands: bool) -> int | None:
    """Before which item to cut a range whose worker is in the item `position`, or None to leave it.
    Half of the items that the worker has not begun stay, or none if it `stands` in that item.
    """
    left = run.end - (position + 1)
    if left < 1 or position < run.last:
        # It has passed all items, and tries failed ones again.
        return None
    return position + 1 + (0 if stands else left // 2)


def is_beyond(run: Run, frame: wire.Up) -> bool:
    """Whether the frame is of an item that is not the range's. A worker of pgqrs never sends that: a
    range is cut behind the item that its worker has announced.
    """
    return isinstance(frame, wire.Checkpoint | wire.StepFailed) and frame.step.position >= run.end


def left_of(run: Run) -> int:
    """How many items of the range have not begun, as far as its worker has told."""
    return max(0, run.end - (run.last + 2))
