"""docs/guarantees.md says exactly what the fault tests prove."""

from tests.crashes.guarantees import BEGIN, END, PAGE, claims, rewritten, rows, table


def test_every_row_of_the_page_is_what_a_test_says_and_every_test_has_its_row() -> None:
    said = {claim.test: (claim.failure, claim.happens, claim.charged) for claim in claims()}
    assert said
    assert rows(PAGE.read_text()) == said, "make the page anew: python3 dev.py run guarantees"


def test_a_row_that_no_test_proves_any_more_is_seen() -> None:
    page = rewritten(f"before {BEGIN} old {END} after", table([]))
    assert rows(page).keys() == {claim.test for claim in claims()}
    [first, *_] = claims()
    assert first.test not in rows(page.replace(f"`{first.test}`", "`test_gone::test_gone`"))
    assert page.startswith("before ")
    assert page.endswith(" after")
