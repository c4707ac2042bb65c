"""Text from outside on its way to people: names of files, labels, metadata, what libraries say."""

from __future__ import annotations

import re

_HIDDEN = re.compile(
    "["
    "\x00-\x1f\x7f-\x9f"  # control characters; escape sequences begin with one
    "\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"  # unseen, or turn the order round
    "\ufffe\uffff\ud800-\udfff"  # no characters: XML and UTF-8 refuse them
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
    "]"
)
"""What a reader would not see, or would see as something else (Unicode's classes Cc, Cf, Cs, Zl, Zp). The two joiners
of scripts and emoji stay, as do the number signs of Arabic, which are seen."""

_BYTES_IN_NAMES = range(0xDC80, 0xDD00)
"""Where Python keeps bytes of file names that are not UTF-8 (PEP 383)."""

MOST_SHOWN = 2000
"""Characters of one text that are shown; a name of a megabyte says nothing more than its two ends."""


def shown(text: str, *, lines: bool = False, most: int = MOST_SHOWN) -> str:
    r"""Returns a text as it may reach a terminal or a page: what can't be seen is written out, as ``\x1b``.

    Args:
        text: Anything.
        lines: Whether line breaks stay.
        most: The longest text that is shown whole; a longer one loses its middle.
    """
    if len(text) > most:
        text = f"{text[: most // 2]} … {text[-most // 2 :]}"
    return _HIDDEN.sub(_written_out if not lines else _but_breaks, text)


def escaped_json(document: str) -> str:
    r"""Returns a JSON text in which the same characters stand as ``\uXXXX``, which means the same to every reader."""
    return _HIDDEN.sub(lambda found: found[0] if found[0] == "\n" else _in_json(found[0]), document)


def _written_out(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code in _BYTES_IN_NAMES:
        code -= 0xDC00
    if found[0] in "\n\r\t":
        return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}[found[0]]
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _but_breaks(found: re.Match[str]) -> str:
    return found[0] if found[0] == "\n" else _written_out(found)


def _in_json(sign: str) -> str:
    units = sign.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))
