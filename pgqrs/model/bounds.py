"""The limits for the data of a run: the length of names, the size of numbers, the number of steps.

The decoder of the pipe refuses values beyond the limits of these types (supervisors/wire.py). So
every value that reaches a database fits its column.
"""

from typing import Annotated

from msgspec import Meta

NAME_CHARS_MAX = 255  # the width of 0.15's columns
DURATION_S_MAX = (
    100 * 365 * 86_400.0
)  # a hundred years: a timestamp in every database can still be moved by it
STEPS_MAX = 100_000  # of one run: more than that is a loop that never ends
PATH_CHARS_MAX = 400  # of a task's path: longer ones are kept short
NUMBER_MAX = 2**63 - 1
COUNT_MAX = 2**31 - 1
STEP_NAME_CHARS_MAX = 4 * NAME_CHARS_MAX  # with its number and whatever else tells its calls apart

Id = Annotated[int, Meta(gt=0, le=NUMBER_MAX)]
Number = Annotated[int, Meta(ge=0, le=NUMBER_MAX)]
Count = Annotated[int, Meta(ge=0, le=COUNT_MAX)]
Position = Annotated[int, Meta(ge=0, le=STEPS_MAX)]
Seconds = Annotated[float, Meta(ge=0, le=DURATION_S_MAX)]
StepName = Annotated[str, Meta(min_length=1, max_length=STEP_NAME_CHARS_MAX)]
