"""Counts in words, as people read them."""


def count(number: int, noun: str) -> str:
    """ "1 crash", "2,000 crashes"."""
    plural = noun + ("es" if noun.endswith("sh") else "s")
    return f"{number:,} {noun if number == 1 else plural}"
