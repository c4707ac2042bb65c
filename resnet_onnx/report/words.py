"""Names and numbers of things in sentences."""

from __future__ import annotations

from collections.abc import Sequence


def listed(names: Sequence[str]) -> str:
    """Returns ``a``, ``a and b`` or ``a, b and c``; `names` has at least one."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def counted(count: int, thing: str) -> str:
    """Returns ``1 epoch`` or ``1,200 epochs``; `thing` is the singular of a word whose plural ends in s."""
    return f"{count:,} {thing}{'s' * (count != 1)}"


def joined(*words: str) -> str:
    """Returns the words that are not empty with spaces between."""
    return " ".join(filter(None, words))
