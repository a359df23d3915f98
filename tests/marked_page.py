"""Pages of docs/ with a part that a program makes, between two comments."""


def with_part(page: str, begin: str, end: str, made: str) -> str:
    """The page with `made` between the comments `begin` and `end`. Raises ValueError if the page lacks them."""
    before, begun, rest = page.partition(begin)
    _, ended, after = rest.partition(end)
    if not (begun and ended):
        raise ValueError(f"the page lacks its markers: {begin} and {end}")
    return f"{before}{begin}\n\n{made}\n{end}{after}"
