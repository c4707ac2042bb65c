"""Seeded damage to structured inputs: one value becomes something that nobody expects there."""

from __future__ import annotations

import copy
import random
from typing import Any

ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, 2**63 - 1, -(2**63), 1e308, -1e308, 1e-320, 0.5, "", "\x1b[2J", "a\nb", "\u202e",
    "x" * 5000, "../../etc/passwd", "nan", [], {}, [[]], [None] * 3, {"": None}, "🂡", "1e999",
)  # fmt: skip
"""Values of every kind that JSON has."""


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Returns the paths of all values inside a value of JSON; of a long list only the first few."""
    found = [path]
    items = value.items() if isinstance(value, dict) else enumerate(value[:4]) if isinstance(value, list) else ()
    for key, item in items:
        found += places(item, (*path, key))
    return found


def mutated(value: Any, seed: int) -> tuple[Any, str]:
    """Returns a copy of a value of JSON with one to three places changed, and what was done."""
    chance, result, said = random.Random(seed), copy.deepcopy(value), []
    for _ in range(chance.choice((1, 1, 2, 3))):
        path = chance.choice(places(result)[1:] or [()])
        if not path:
            break
        holder = result
        for key in path[:-1]:
            holder = holder[key]
        how = chance.choice(("replace", "replace", "replace", "remove", "double"))
        odd = chance.choice(ODD)
        said.append(f"{how} {path} {odd!r:.40}")
        if how == "replace":
            holder[path[-1]] = copy.deepcopy(odd)
        elif how == "remove":
            del holder[path[-1]]
        elif isinstance(holder, list):
            holder.append(copy.deepcopy(holder[path[-1]]))
        else:
            holder[f"{path[-1]}2"] = holder[path[-1]]
    return result, "; ".join(said)


def damaged(data: bytes, seed: int) -> tuple[bytes, str]:
    """Returns bytes with some of them changed, cut out, doubled or cut off, and what was done."""
    chance, result = random.Random(seed), bytearray(data)
    how = chance.choice(("flip", "flip", "cut", "remove", "double", "number"))
    at = chance.randrange(len(result))
    size = chance.choice((1, 2, 4, 16))
    if how == "flip":
        for _ in range(chance.choice((1, 1, 4, 16))):
            result[chance.randrange(len(result))] ^= 1 << chance.randrange(8)
    elif how == "cut":
        del result[at:]
    elif how == "remove":
        del result[at : at + size]
    elif how == "double":
        result[at:at] = result[at : at + size]
    else:
        result[at : at + size] = chance.choice((b"\xff", b"\0", b"\x7f")) * size
    return bytes(result), f"{how} at {at}, {size}"
