"""A module that holds 200 MB of small objects once it is imported, as a model or a word list
would.
"""

import pgqrs

WORDS = [b"%d" % n + b"x" * 900 for n in range(210_000)]


@pgqrs.handler(queue="preloaded")
def preloaded(payload: int) -> int:
    return len(WORDS[payload])
