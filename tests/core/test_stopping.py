"""How a supervisor stops: every row of its table, and the page that is drawn from it."""

from itertools import product

import pytest

from supervisors.core.events import Exit
from supervisors.core.stopping import DOES, STOPPED, TABLE, TOLD, Happened, Level, after
from tests.stopping_page import BEGIN, END, PAGE, diagram, redrawn, table

R, F, S, K = Level.RUNNING, Level.FINISHING, Level.STOPPING, Level.KILLING

# (what happened): where it leads from running, finishing, stopping and killing; a number is an exit code.
EXPECTED: dict[Happened, tuple[Level | int, ...]] = {
    Happened.TOLD: (F, F, S, K),
    Happened.TOLD_TWICE: (S, S, S, K),
    Happened.TOLD_THREE_TIMES: (K, K, K, K),
    Happened.TIME_OVER: (R, K, K, K),
    Happened.EMPTY: (R, 0, 0, 0),
    Happened.LEASE_LOST: (R, 3, 3, 3),
    Happened.AWAY: (R, F, S, 3),
    Happened.NOTHING_TO_DO: (0, F, S, K),
    Happened.NO_WORKERS: (1, 1, 1, 1),
}


@pytest.mark.parametrize(("happened", "level"), list(product(Happened, Level)), ids=lambda x: x.name)
def test_where_it_goes(happened: Happened, level: Level) -> None:
    then = after(level, happened)
    expected = EXPECTED[happened][level]
    if isinstance(then, Exit):
        assert type(expected) is int
        assert then.code == expected
        assert then.reason
    else:
        assert then is expected


def test_to_stop_is_never_taken_back() -> None:
    for level, ways in TABLE.items():
        assert all(isinstance(then, Exit) or then > level for then in ways.values())


@pytest.mark.parametrize("level", Level)
def test_from_every_level_three_signals_and_nothing_held_lead_to_the_end(level: Level) -> None:
    for happened in TOLD.values():
        then = after(level, happened)
        assert isinstance(then, Level)
        level = then
    assert level is K
    assert after(level, Happened.EMPTY) == STOPPED


def test_an_end_says_the_reason_that_is_known_and_a_level_has_none() -> None:
    assert after(R, Happened.NO_WORKERS, "no such module") == Exit(1, "no such module")
    assert after(R, Happened.TOLD, "whatever") is F


def test_every_level_says_what_it_does() -> None:
    assert list(DOES) == list(TABLE) == list(Level)


def test_the_page_is_drawn_from_the_table() -> None:
    page = PAGE.read_text()
    assert redrawn(page) == page, "draw it anew: python3 dev.py run stopping"


def test_a_page_of_another_table_is_seen() -> None:
    assert (
        redrawn(f"before {BEGIN} old {END} after") == f"before {BEGIN}\n\n{diagram()}\n{table()}\n{END} after"
    )
    with pytest.raises(ValueError, match="markers"):
        redrawn("no markers")
