"""The one way in which text from users, rows and workers becomes a part of a line that somebody reads.

Such text may hold line feeds, which would forge lines of a log, and characters that a terminal obeys: colours, titles, the
cursor, or the direction of writing. All of those are shown as the escapes that Python writes for them.
"""

import re

# Controls (but the tab), line and paragraph separators, what changes the direction of writing or is invisible and not part
# of a word (the joiners U+200C and U+200D are), surrogates, noncharacters and tags.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0a-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff0-\ufffb"
    "\ufffe\uffff\ud800-\udfff\U000e0000-\U000e0fff]"
)
# The same in JSON, where the encoder has escaped what is below U+0020.
_UNPRINTABLE_IN_JSON = re.compile(_UNPRINTABLE.pattern.replace("\x00-\x08\x0a-\x1f", ""))


def printable(text: str) -> str:
    """On one line, with a backslash escape for each character that is not shown as itself. Tabs stay."""
    return text if text.isprintable() else _UNPRINTABLE.sub(_escaped, text)


def printable_lines(text: str, indent: str) -> str:
    """Several lines, each but the first behind `indent`, so that none of them looks like a line of another."""
    first, *rest = text.split("\n")
    return "\n".join([printable(first), *(indent + printable(line.rstrip("\r")) for line in rest)])


def printable_json(document: str) -> str:
    """A JSON document that means the same and holds nothing that a terminal obeys."""
    return document if document.isprintable() else _UNPRINTABLE_IN_JSON.sub(_escaped_in_json, document)


_SHORT = {"\n": "\\n", "\r": "\\r"}


def _escaped(found: re.Match[str]) -> str:
    character = found[0]
    if character in _SHORT:
        return _SHORT[character]
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _escaped_in_json(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))
