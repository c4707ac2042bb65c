"""Class names, and which output of a model stands for which class of a data set."""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from runtimes.errors import BadData, FileProblem, ToolkitError, UsageError

MatchedBy = Literal["name", "number", "order"]
"""What a data set's classes were given their outputs by."""

_WORDNET_ID = re.compile(r"n\d{8}")
_SAME_NAMES = 0.9
"""Share of ImageNet's names that a model's labels must have in common to be ImageNet's under other spellings."""
_SHOWN = 5


@cache
def imagenet_labels() -> tuple[str, ...]:
    """Returns the 1,000 ImageNet class names in class order, as torchvision's weights carry them."""
    from torchvision.models import ResNet50_Weights

    return tuple(ResNet50_Weights.IMAGENET1K_V1.meta["categories"])


@cache
def imagenet_wordnet_ids() -> tuple[str, ...]:
    """Returns the 1,000 WordNet ids (``n01440764`` …) in class order, from the list that timm ships."""
    package = importlib.util.find_spec("timm")  # found, not imported: only its list is needed
    folders = list(package.submodule_search_locations or []) if package else []
    for folder in folders:
        path = Path(folder) / "data" / "_info" / "imagenet_synsets.txt"
        if path.is_file():
            ids = tuple(path.read_text(encoding="utf-8").split())
            if len(ids) == 1000:
                return ids
    raise ToolkitError(
        "the list of ImageNet's WordNet ids is missing from timm", fix="pip install --force-reinstall timm"
    )


def cifar10_labels() -> tuple[str, ...]:
    """Returns the ten CIFAR-10 class names in class order (Krizhevsky 2009), which is alphabetical."""
    return ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def read_labels(argument: str) -> tuple[str, ...]:
    """Reads what ``--labels`` names.

    Args:
        argument: ``imagenet``, ``cifar10``, or a UTF-8 text file with one label a line.

    Raises:
        UsageError: The file has no labels, an empty line between labels, the same label twice, or is not UTF-8.
        FileProblem: There is no such file, or it can't be read.
    """
    if argument == "imagenet":
        return imagenet_labels()
    if argument == "cifar10":
        return cifar10_labels()
    try:
        text = Path(argument).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise FileProblem(
            f"--labels '{argument}': can't be read ({error.strerror or error})",
            fix="name a text file with one label a line, or imagenet, or cifar10",
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--labels '{argument}': not UTF-8 text ({error.reason} at byte {error.start})") from error
    labels = [line.strip() for line in text.rstrip().splitlines()]
    if not labels:
        raise UsageError(f"--labels '{argument}': the file is empty; expected one label a line")
    if "" in labels:
        raise UsageError(f"--labels '{argument}': line {labels.index('') + 1} is empty; expected one label a line")
    twice = [label for label, count in Counter(labels).items() if count > 1]
    if twice:
        lines = [str(number) for number, label in enumerate(labels, 1) if label == twice[0]]
        raise UsageError(f"--labels '{argument}': '{twice[0]}' stands on lines {', '.join(lines)}; labels must differ")
    return tuple(labels)


def match_classes(
    folder_classes: Sequence[str], model_labels: Sequence[str] | None, model_classes: int
) -> NDArray[np.int64]:
    """Finds the model's output for each class of a data set.

    By name, first exactly, then without regard to case, spaces, hyphens and underscores; ImageNet's also by WordNet id.
    A data set may hold some of the model's classes only. By order where the counts are equal and no name matches; names
    that are the numbers of the outputs mean those.

    Args:
        folder_classes: The data set's class names in the order of its labels.
        model_labels: The model's labels in the order of its outputs, or None where they are not known.
        model_classes: How many outputs the model has.

    Returns:
        int64 [classes of the set], model output index per data set class.

    Raises:
        BadData: Some classes match and others don't, or none does and the counts differ; the message names them.
        UsageError: The number of labels is not the number of outputs.
    """
    if model_labels is not None and len(model_labels) != model_classes:
        raise UsageError(
            f"the model has {model_classes} outputs and {len(model_labels)} labels", fix="give the labels with --labels"
        )
    if not folder_classes:
        raise BadData("the data set has no classes, so that nothing can be compared", fix="name one with class folders")
    found, _ = _named(folder_classes, model_labels, model_classes)
    if not found and len(folder_classes) == model_classes:
        return np.arange(model_classes, dtype=np.int64)
    missing = [name for name in folder_classes if name not in found]
    if missing:
        shown = ", ".join(missing[:_SHOWN]) + (f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else "")
        if model_labels is None:
            raise BadData(
                f"the data set has {len(folder_classes)} classes ({shown}), the model {model_classes} outputs "
                f"without labels, so that classes can't be matched by name, nor by order",
                fix="name the model's labels with --labels FILE|imagenet|cifar10",
            )
        raise BadData(
            f"{len(missing)} of {len(folder_classes)} classes of the data set are not among the model's "
            f"{model_classes} labels: {shown}; the model's begin {', '.join(model_labels[:_SHOWN])}",
            fix="rename the class folders, or name the model's labels with --labels",
        )
    outputs = [found[name] for name in folder_classes]
    shared = [index for index, count in Counter(outputs).items() if count > 1]
    if shared:
        both = [name for name in folder_classes if found[name] == shared[0]]
        raise BadData(f"the classes {' and '.join(both)} of the data set match the same output of the model")
    return np.asarray(outputs, dtype=np.int64)


def matched_by(folder_classes: Sequence[str], model_labels: Sequence[str] | None, model_classes: int) -> MatchedBy:
    """Returns what ``match_classes`` went by: labels, names that are the numbers of outputs, or the order alone."""
    return _named(folder_classes, model_labels, model_classes)[1]


def _named(
    folder_classes: Sequence[str], labels: Sequence[str] | None, model_classes: int
) -> tuple[dict[str, int], MatchedBy]:
    """Returns the output of each class whose name tells it, none where the order must, and which of them it is."""
    found = _by_name(folder_classes, labels) if labels is not None else {}
    if len(found) < len(folder_classes):
        by_id = _by_wordnet_id(folder_classes, labels, model_classes)
        found = by_id if len(by_id) > len(found) else found
    if found:
        return found, "name"
    numbers = {str(number): number for number in range(model_classes)}  # 10 comes after 9, not after 1
    return (numbers, "number") if numbers.keys() == set(folder_classes) else ({}, "order")


def _plain(name: str) -> str:
    return re.sub(r"[\s_\-]+", "", name).casefold()


def _by_name(wanted: Sequence[str], labels: Sequence[str]) -> dict[str, int]:
    exact = {label: index for index, label in enumerate(labels)}
    plain: dict[str, int | None] = {}
    for index, label in enumerate(labels):
        plain[_plain(label)] = None if _plain(label) in plain else index  # two labels alike: neither is meant
    found = {name: exact.get(name, plain.get(_plain(name))) for name in wanted}
    return {name: index for name, index in found.items() if index is not None}


def _by_wordnet_id(wanted: Sequence[str], labels: Sequence[str] | None, model_classes: int) -> dict[str, int]:
    if model_classes != 1000 or not any(_WORDNET_ID.fullmatch(name) for name in wanted):
        return {}
    if labels is not None:
        alike = sum(_plain(ours) == _plain(theirs) for ours, theirs in zip(imagenet_labels(), labels, strict=True))
        if alike < _SAME_NAMES * model_classes:
            return {}
    order = {wordnet_id: index for index, wordnet_id in enumerate(imagenet_wordnet_ids())}
    return {name: order[name] for name in wanted if name in order}
