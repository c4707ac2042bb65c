"""Names of a model's outputs from a file, in the forms in which people have them."""

from __future__ import annotations

import ast
import codecs
import csv
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runtimes.errors import FileProblem, UsageError
from runtimes.files import open_regular

WORDNET_ID = re.compile(r"n\d{8}")
"""How ImageNet's classes are called by WordNet's offset."""

_MAX_BYTES = 16 * 1024 * 1024
_FORMS = "one label a line, NUMBER LABEL or WORDNET-ID LABEL a line, a CSV, or JSON"
_BACKGROUND = frozenset(
    ("background", "_background_", "__background__", "dummy", "unknown", "none", "__ignore__", "bg")
)
_WITH_ID = re.compile(rf"({WORDNET_ID.pattern})[\s,:;]+(\S.*)")
_NUMBER_FIRST = re.compile(r"(\d{1,9})(?:\s*[:,;=]\s*|\s+)(\S.*)")
_NUMBER_LAST = re.compile(r"(.*?\S)\s*[:,;=\s]\s*(\d{1,9})")
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The names of a model's outputs.

    Attributes:
        names: One per output.
        ids: WordNet ids in the same order (None for an output without one), or None where there are none.
        notes: What the user should know of how they were read.
    """

    names: tuple[str, ...]
    ids: tuple[str | None, ...] | None = None
    notes: tuple[str, ...] = ()

    def fits(self, outputs: int) -> bool:
        """Returns whether these are the labels of a model with so many outputs; see ``for_outputs``."""
        try:
            self.for_outputs(outputs, "")
        except UsageError:
            return False
        return True

    def for_outputs(self, outputs: int | None, argument: str) -> Labels:
        """Returns the labels of a model with so many outputs (None: not known).

        A first label for the background is dropped where the model has one output fewer than there are labels;
        ImageNet's 1,000 get one in front for a model of 1,001, as TensorFlow's models have it.

        Raises:
            UsageError: There are more or fewer.
        """
        count = len(self.names)
        if outputs is None or outputs == count:
            return self
        if outputs == count - 1 and self.names[0].casefold() in _BACKGROUND:
            return replace(
                self,
                names=self.names[1:],
                ids=None if self.ids is None else self.ids[1:],
                notes=(
                    *self.notes,
                    f"the first label, {self.names[0]}, was left out: {outputs} outputs, {count} labels",
                ),
            )
        if (count, outputs) == (1000, 1001):
            return replace(
                self,
                names=("background", *self.names),
                ids=None if self.ids is None else (None, *self.ids),
                notes=(*self.notes, "output 0 of 1001 was taken for the background, in front of the 1000 labels"),
            )
        raise UsageError(
            f"--labels {argument} has {count} labels, the model {outputs} outputs"
            + (f"; the first is {self.names[0]!r}, the last {self.names[-1]!r}" if abs(count - outputs) == 1 else ""),
            fix="give one label for each output, in their order",
        )


def read_label_file(argument: str) -> Labels:
    """Reads a label file, in UTF-8 or, with a byte order mark, UTF-16 or UTF-32.

    Args:
        argument: A text file with one label a line, ``NUMBER LABEL``, ``LABEL NUMBER`` or ``WORDNET-ID LABEL`` a line,
            a CSV of these with or without headings, or JSON or a Python literal: a list, or a dictionary from numbers
            to labels or from labels to numbers. Other than the first, each is named in ``notes``.

    Raises:
        UsageError: The file has no labels, an empty line between labels, numbers with gaps, or an unknown encoding.
        FileProblem: There is no such file, or it can't be read.
    """
    text = _text(argument)
    if not text.strip():
        raise UsageError(f"--labels '{argument}': the file is empty; expected {_FORMS}")
    found = _from_literal(text.strip(), argument) if text.lstrip()[0] in "[{" else None
    return _with_ids(_from_lines(text, argument) if found is None else found, argument)


def _text(argument: str) -> str:
    path = Path(argument)
    try:
        with open_regular(path) as handle:
            data = handle.read(_MAX_BYTES + 1)
    except OSError as error:
        raise FileProblem(
            f"--labels '{argument}': can't be read ({error.strerror or error})",
            fix="name a text file with one label a line, or imagenet, or cifar10",
        ) from error
    if len(data) > _MAX_BYTES:
        raise UsageError(f"--labels '{argument}': larger than {_MAX_BYTES:,} bytes, expected {_FORMS}")
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if data.startswith(mark)), None)
    if encoding is None:
        # Letters of most languages have a zero as one of their two bytes; no UTF-8 text has any.
        zeros = data[:200].count(0), data[1:200:2].count(0)
        encoding = "utf-8" if not zeros[0] else "utf-16-le" if 2 * zeros[1] > zeros[0] else "utf-16-be"
    try:
        return data.decode(encoding).rstrip()
    except UnicodeDecodeError as error:
        name = encoding.upper().removesuffix("-SIG")
        raise UsageError(
            f"--labels '{argument}': not {name} text ({error.reason} at byte {error.start})", fix="save it as UTF-8"
        ) from error


# ---- JSON and Python literals ----------------------------------------------------------------------------------------


def _from_literal(text: str, argument: str) -> Labels | None:
    """Reads JSON or a Python literal; None where the text is neither."""
    value: Any
    form = "JSON"
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        try:
            value, form = ast.literal_eval(text), "a Python literal"
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            if "\n" in text and text[0] == "[":  # a label may begin with a bracket
                return None
            raise UsageError(f"--labels '{argument}': begins like JSON and is not; expected {_FORMS}") from None
    if isinstance(value, dict) and isinstance(value.get("id2label"), dict):
        value = value["id2label"]  # a model's configuration, as transformers writes it
    if isinstance(value, dict):
        names, start = _from_dict(value, argument)
        return Labels(names=names, notes=(f"labels were read from {form}{_counted_from(start)}",))
    if not isinstance(value, list | tuple) or not value:
        raise UsageError(f"--labels '{argument}': {form} of another form; expected a list or dictionary of labels")
    return Labels(names=tuple(_label(one, argument) for one in value), notes=(f"labels were read from {form}",))


def _from_dict(value: Mapping[Any, Any], argument: str) -> tuple[tuple[str, ...], int]:
    pairs = list(value.items())
    if all(_whole(item) is not None and not isinstance(item, str) for _, item in pairs):
        if any(not isinstance(key, str) for key, _ in pairs):
            raise UsageError(
                f"--labels '{argument}': numbers for numbers; either side may be the label",
                fix="put the labels into quotes",
            )
        pairs = [(item, key) for key, item in pairs]
    numbers = [_whole(key) for key, _ in pairs]
    if None in numbers:
        odd = pairs[numbers.index(None)][0]
        raise UsageError(f"--labels '{argument}': {str(odd)[:60]!r} is not the number of an output")
    by_number = dict(zip(numbers, (_label(item, argument) for _, item in pairs), strict=True))
    start = _first_number(numbers)
    if start is None:
        raise UsageError(
            f"--labels '{argument}': the numbers of its {len(pairs)} labels do not run from 0 to {len(pairs) - 1}"
        )
    return tuple(by_number[start + place] for place in range(len(pairs))), start


def _counted_from(start: int) -> str:
    return f", counted from {start}" if start else ""


def _whole(value: object) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, str) and re.fullmatch(r"\d{1,9}", value.strip()):
        return int(value)
    return value if isinstance(value, int) else None


def _label(value: object, argument: str) -> str:
    """Returns a label of JSON as text; a pair has a WordNet id first."""
    if isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(part, str) for part in value):
        value = " ".join(value)
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise UsageError(f"--labels '{argument}': {str(value)[:60]!r} is not a label; expected texts")
    return " ".join(str(value).split())


# ---- lines -----------------------------------------------------------------------------------------------------------


def _from_lines(text: str, argument: str) -> Labels:
    lines = [line.strip() for line in re.split(r"\r\n|\r|\n", text)]
    if "" in lines:
        raise UsageError(f"--labels '{argument}': line {lines.index('') + 1} is empty; expected {_FORMS}")
    for headings in (0, 1):
        for form, match in (("NUMBER LABEL", _number_first), ("LABEL NUMBER", _number_last)):
            found = _numbered([match(line) for line in lines[headings:]])
            if found is not None:
                names, start = found
                below = f", below the headings {lines[0]!r}" if headings else ""
                note = f"labels were read as {form} a line{_counted_from(start)}{below}"
                return Labels(names=names, notes=(note,))
    return Labels(names=tuple(lines))


def _numbered(pairs: Sequence[tuple[int, str] | None]) -> tuple[tuple[str, ...], int] | None:
    """Returns labels by their numbers and the first number; None where not all lines have one."""
    found = [pair for pair in pairs if pair is not None]
    start = _first_number([number for number, _ in found])
    if len(found) < len(pairs) or len(found) < 2 or start is None:
        return None
    if len({name for _, name in found}) == 1:
        return None  # "class 0", "class 1": the number is part of the label
    by_number = dict(found)
    return tuple(by_number[start + place] for place in range(len(found))), start


def _first_number(numbers: Sequence[int | None]) -> int | None:
    """Returns 0 or 1 where numbers run from there without a gap, otherwise None."""
    found = {number for number in numbers if number is not None}
    for start in (0, 1):
        if len(found) == len(numbers) and found == set(range(start, start + len(numbers))):
            return start
    return None


def _number_first(line: str) -> tuple[int, str] | None:
    found = _NUMBER_FIRST.fullmatch(line)
    return (int(found[1]), _unquoted(found[2])) if found else None


def _number_last(line: str) -> tuple[int, str] | None:
    found = _NUMBER_LAST.fullmatch(line)
    return (int(found[2]), _unquoted(found[1])) if found else None


def _unquoted(field: str) -> str:
    """Returns a field of a CSV without its quotes; several fields are kept as they are."""
    if field.startswith('"'):
        fields = next(csv.reader([field], skipinitialspace=True), [])
        if len(fields) == 1:
            return fields[0].strip() or field
    return field


# ---- WordNet ids -----------------------------------------------------------------------------------------------------


def _with_ids(labels: Labels, argument: str) -> Labels:
    """Takes WordNet ids off labels that have them in front, and keeps them beside the labels."""
    found = [_WITH_ID.fullmatch(name) for name in labels.names]
    without = [place for place, one in enumerate(found) if one is None]
    background = without == [0] and len(found) > 1 and labels.names[0].casefold() in _BACKGROUND
    if len(without) == len(found):
        if sum(WORDNET_ID.fullmatch(name) is not None for name in labels.names) >= len(found) - 1 > 0:
            ids = tuple(name if WORDNET_ID.fullmatch(name) else None for name in labels.names)
            return replace(labels, ids=ids)
        return labels
    if without == [0] and not background and re.search(r"[,;\t]", labels.names[0]):
        below = replace(labels, names=labels.names[1:], notes=(f"labels stand below the headings {labels.names[0]!r}",))
        return _with_ids(below, argument)
    if without and not background:
        if 2 * len(without) > len(found):
            return labels
        raise UsageError(
            f"--labels '{argument}': {labels.names[without[0]]!r} has no WordNet id in front of it, and "
            f"{len(found) - len(without)} others have one",
            fix="give all of them one, or none",
        )
    names = tuple(_unquoted(one[2].strip()) if one else name for one, name in zip(found, labels.names, strict=True))
    ids = tuple(one[1] if one else None for one in found)
    counts = Counter(one for one in ids if one is not None)
    if (twice := counts.most_common(1)[0])[1] > 1:
        raise UsageError(f"--labels '{argument}': the WordNet id {twice[0]} stands there twice")
    return replace(
        labels, names=names, ids=ids, notes=(*labels.notes, "labels have WordNet ids, which were read apart")
    )
