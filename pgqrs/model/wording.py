"""Numbers with nouns, for messages that people read."""


def count(number: int, noun: str) -> str:
    """Returns a number with its noun: "1 crash", "2,000 crashes"."""
    plural = noun + ("es" if noun.endswith("sh") else "s")
    return f"{number:,} {noun if number == 1 else plural}"
