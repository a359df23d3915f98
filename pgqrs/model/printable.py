"""Makes text from users, rows and workers safe to print as part of a line.

Such text may contain line feeds, which could forge lines of a log, and characters that control a
terminal: colours, the title, the cursor, the direction of writing. They are shown as Python
escapes.
"""

import re

# Control characters (except tab), line and paragraph separators, direction marks, surrogates,
# noncharacters, tags, and invisible characters that are not part of a word. The joiners U+200C and
# U+200D are part of words.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0a-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff0-\ufffb"
    "\ufffe\uffff\ud800-\udfff\U000e0000-\U000e0fff]"
)
# The same set in JSON, where the encoder has already escaped the characters below U+0020.
_UNPRINTABLE_IN_JSON = re.compile(_UNPRINTABLE.pattern.replace("\x00-\x08\x0a-\x1f", ""))


def printable(text: str) -> str:
    """Returns the text on one line. Unsafe characters become backslash escapes; tabs are kept."""
    return text if text.isprintable() else _UNPRINTABLE.sub(_escaped, text)


def printable_lines(text: str, indent: str) -> str:
    """Returns several lines. Each line after the first is indented, so that no reader takes it for
    a line of its own.
    """
    first, *rest = text.split("\n")
    return "\n".join([printable(first), *(indent + printable(line.rstrip("\r")) for line in rest)])


def printable_json(document: str) -> str:
    """Returns the same JSON document, with characters that control a terminal as escapes."""
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
