"""Class names, and which output of a model stands for which class of a data set."""

from __future__ import annotations

import importlib.util
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from resnet_onnx.data.label_files import WORDNET_ID, Labels, read_label_file
from runtimes.errors import BadData, ToolkitError, UsageError

ClassOrder = Literal["number", "name"]
"""How class folders that are named by numbers are put into the order of outputs: 2 before 10, or 10 before 2."""

MatchedBy = Literal["name", "number", "order"]
"""What a data set's classes were given their outputs by."""

_NUMBER = re.compile(r"\d{1,9}", re.ASCII)
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


def read_labels(argument: str) -> Labels:
    """Reads what ``--labels`` names: ``imagenet``, ``cifar10``, or a file; see ``label_files.read_label_file``."""
    if argument == "imagenet":
        return Labels(names=imagenet_labels())
    if argument == "cifar10":
        return Labels(names=cifar10_labels())
    return read_label_file(argument)


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What is known of a model's outputs.

    Attributes:
        count: How many there are.
        labels: One per output, or None.
        ids: WordNet ids in the same order, where a label file has them; or None.
    """

    count: int
    labels: Sequence[str] | None = None
    ids: Sequence[str | None] | None = None

    def __post_init__(self) -> None:
        if self.labels is not None and len(self.labels) != self.count:
            raise UsageError(
                f"the model has {self.count} outputs and {len(self.labels)} labels", fix="give the labels with --labels"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassMatch:
    """Which output of a model each class of a data set has.

    Attributes:
        outputs: int64 [classes of the set].
        by: What they were found by.
        notes: What the user should know of it.
    """

    outputs: NDArray[np.int64]
    by: MatchedBy
    notes: tuple[str, ...] = ()


def match_classes(
    folder_classes: Sequence[str], model_labels: Sequence[str] | None, model_classes: int
) -> NDArray[np.int64]:
    """Returns int64 [classes of the set], the output of each class; see ``match_outputs``."""
    return match_outputs(folder_classes, Outputs(count=model_classes, labels=model_labels)).outputs


def match_outputs(
    classes: Sequence[str],
    outputs: Outputs,
    *,
    spellings: Mapping[str, Sequence[str]] | None = None,
    class_order: ClassOrder | None = None,
) -> ClassMatch:
    """Finds the model's output for each class of a data set.

    By name, first exactly, then without regard to case, spaces, hyphens, underscores and the composition of accents;
    ImageNet's also by WordNet id. A data set may hold some of the model's classes only. By order where the counts are
    equal and no name matches. Names that are numbers have two orders, by number and by name (10 stands before 2); where
    these differ, a model with labels takes the first, and one without takes neither by itself.

    Args:
        classes: The data set's class names in the order of its labels.
        outputs: What is known of the model's outputs.
        spellings: The class names by code page, where nothing says which they are written in.
        class_order: Which order is meant, where no name matches.

    Raises:
        BadData: Some classes match and others don't, or none does and the counts differ; the message names them.
        UsageError: The number of labels is not the number of outputs, or the order has to be chosen.
    """
    if not classes:
        raise BadData("the data set has no classes, so that nothing can be compared", fix="name one with class folders")
    names, found, notes = _spelt(classes, outputs, spellings or {})
    if found:
        chosen = _complete(names, found, outputs)
        if class_order is not None:
            notes.append(f"the classes were matched by name, so that --class-order {class_order} was not needed")
        return ClassMatch(outputs=chosen, by="name", notes=tuple(notes))
    twice = {name: places for name in names if len(places := _places(name, outputs.labels or ())) > 1}
    if twice:
        raise _missing(names, list(twice), outputs)
    by, ranks = _by_order(names, outputs, class_order)
    went = f"the classes went to the model's outputs by their {by}"
    if class_order is not None:
        notes.append(f"{went}, as --class-order {class_order} says ({_pairs(names, ranks)})")
    else:
        notes.append(
            f"no class folder is known to the model by name: {went} ({_pairs(names, ranks)}); if that is not what they "
            f"mean, this accuracy is wrong (--labels FILE names the outputs"
            f"{', --class-order their order' if _numbers(names) else ''})"
        )
    return ClassMatch(outputs=np.asarray(ranks, dtype=np.int64), by=by, notes=tuple(notes))


# ---- by order --------------------------------------------------------------------------------------------------------


def _by_order(
    names: Sequence[str], outputs: Outputs, class_order: ClassOrder | None
) -> tuple[MatchedBy, Sequence[int]]:
    """Returns the output of each class by its place in an order, and whether that is the order of numbers or names."""
    numbers = _numbers(names)
    if class_order == "number" and numbers is None:
        odd = next((name for name in names if not _NUMBER.fullmatch(name)), names[0])
        raise UsageError(
            f"--class-order number: the class folder '{odd}' is not a number of its own", fix="--class-order name"
        )
    complete = len(names) == outputs.count
    by_number = None
    if numbers is not None and max(numbers) < outputs.count and (complete or class_order == "number"):
        by_number = numbers
    elif numbers is not None and complete:
        by_number = _ranks(numbers)
    by_name = _ranks(names) if complete else None
    if class_order == "number" and by_number is not None:
        return "number", by_number
    if by_name is None or (class_order == "number" and by_number is None):
        raise _missing(names, names, outputs)
    if by_number is None or class_order == "name":
        return "order", by_name
    if list(by_number) != list(by_name) and outputs.labels is None:
        raise UsageError(
            f"the {len(names)} class folders are named by numbers and the model has no labels, so that two orders are "
            f"possible: by number {_pairs(names, by_number)}; by name {_pairs(names, by_name)}",
            fix="--class-order number or --class-order name (as torchvision's ImageFolder orders them in a training), "
            "or --labels FILE, which names the outputs",
        )
    return "number", by_number


def _numbers(names: Sequence[str]) -> list[int] | None:
    """Returns the numbers that the names are, or None where one is none or two are the same."""
    if not all(_NUMBER.fullmatch(name) for name in names):
        return None
    numbers = [int(name) for name in names]
    return numbers if len(set(numbers)) == len(numbers) else None


def _ranks(keys: Sequence[Any]) -> list[int]:
    places = {key: place for place, key in enumerate(sorted(keys))}
    return [places[key] for key in keys]


def _pairs(names: Sequence[str], outputs: Sequence[int]) -> str:
    """Returns the classes of the first outputs: ``output 0 is 0, 1 is 1, 2 is 10, …``."""
    found = sorted(zip(outputs, names, strict=True))
    shown = ", ".join(
        f"{'output ' * (place == 0)}{output} is {name}" for place, (output, name) in enumerate(found[: _SHOWN - 1])
    )
    return shown + (", …" if len(found) >= _SHOWN else "")


# ---- by name ---------------------------------------------------------------------------------------------------------


def _spelt(
    classes: Sequence[str], outputs: Outputs, spellings: Mapping[str, Sequence[str]]
) -> tuple[Sequence[str], dict[str, int], list[str]]:
    """Returns the class names in the code page in which most of them match, the outputs found, and what to say."""
    if not spellings:
        return classes, _named(classes, outputs), []
    found = {page: _named(names, outputs) for page, names in spellings.items()}
    most = max(map(len, found.values()))
    best = [page for page in spellings if len(found[page]) == most] if most else [next(iter(spellings))]
    readings = {tuple(found[page].get(name) for name in spellings[page]) for page in best}
    if len(readings) > 1:
        raise BadData(
            f"the class names may be written in the code pages {' or '.join(best)}, which match other outputs",
            fix="make the .zip anew, with names in UTF-8",
        )
    names = spellings[best[0]]
    return names, found[best[0]], [note] if (note := code_page_note(best[0], names)) else []


def code_page_note(page: str, names: Sequence[str]) -> str:
    """Returns the sentence on class names that were read in a code page; "" where that is UTF-8."""
    if page == "utf-8":
        return ""
    return f"the .zip does not say what its names are written in: they were read in code page {page} ({_listed(names)})"


def _complete(names: Sequence[str], found: Mapping[str, int], outputs: Outputs) -> NDArray[np.int64]:
    """Returns int64 [classes], or raises ``BadData`` where a class has no output or two have the same."""
    missing = [name for name in names if name not in found]
    if missing:
        raise _missing(names, missing, outputs)
    chosen = [found[name] for name in names]
    shared = [index for index, count in Counter(chosen).items() if count > 1]
    if shared:
        both = [name for name in names if found[name] == shared[0]]
        raise BadData(f"the classes {' and '.join(both)} of the data set match the same output of the model")
    return np.asarray(chosen, dtype=np.int64)


def _missing(names: Sequence[str], missing: Sequence[str], outputs: Outputs) -> BadData:
    shown = _listed(missing)
    if outputs.labels is None:
        numbered = _numbers(names) is not None
        return BadData(
            f"the data set has {len(names)} classes ({shown}), the model {outputs.count} outputs "
            f"without labels, so that classes can't be matched by name, nor by order",
            fix="name the model's labels with --labels FILE|imagenet|cifar10"
            + (", or take the folders' names as numbers of outputs with --class-order number" if numbered else ""),
        )
    several = [
        f"'{name}' is the label of outputs {' and '.join(map(str, places))}"
        for name in missing
        if len(places := _places(name, outputs.labels)) > 1
    ]
    return BadData(
        f"{len(missing)} of {len(names)} classes of the data set are not among the model's "
        f"{outputs.count} labels: {shown}; the model's begin {', '.join(outputs.labels[:_SHOWN])}"
        + (f"; {several[0]}, so that the name does not decide" if several else ""),
        fix="give every output a label of its own with --labels, or name the class folders by WordNet id"
        if several
        else "rename the class folders, or name the model's labels with --labels",
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _named(names: Sequence[str], outputs: Outputs) -> dict[str, int]:
    """Returns the output of each class whose name, or WordNet id, tells it."""
    found = _by_name(names, outputs.labels) if outputs.labels is not None else {}
    if len(found) < len(names):
        by_id = _by_wordnet_id(names, outputs)
        found = by_id if len(by_id) > len(found) else found
    return found


def _plain(name: str) -> str:
    return re.sub(r"[\s_\-]+", "", unicodedata.normalize("NFKC", name)).casefold()


def _first_synonym(label: str) -> str:
    """Returns the first of several names: ``tench`` of ``tench, Tinca tinca``."""
    return label.split(",")[0]


def _places(name: str, labels: Sequence[str]) -> list[int]:
    """Returns the outputs that a name may stand for, when nothing but case, spaces and the like tells them apart."""
    exact = [index for index, label in enumerate(labels) if label == name]
    return exact or [index for index, label in enumerate(labels) if _plain(label) == _plain(name)]


def _by_name(wanted: Sequence[str], labels: Sequence[str]) -> dict[str, int]:
    """Returns the outputs of names: exact ones first, then alike ones, then first synonyms; of two alike neither."""
    tables: tuple[dict[str, list[int]], ...] = (defaultdict(list), defaultdict(list), defaultdict(list))
    for index, label in enumerate(labels):
        for table, key in zip(tables, (label, _plain(label), _plain(_first_synonym(label))), strict=True):
            table[key].append(index)
    found: dict[str, int] = {}
    for name in wanted:
        places = next((places for table, key in zip(tables, (name, _plain(name), _plain(name)), strict=True)
                       if (places := table.get(key))), [])  # fmt: skip
        if len(places) == 1:
            found[name] = places[0]
    return found


def _by_wordnet_id(wanted: Sequence[str], outputs: Outputs) -> dict[str, int]:
    if not any(WORDNET_ID.fullmatch(name) for name in wanted):
        return {}
    if outputs.ids is not None:
        places = {one: index for index, one in enumerate(outputs.ids) if one is not None}
        return {name: places[name] for name in wanted if name in places}
    order = {wordnet_id: index for index, wordnet_id in enumerate(imagenet_wordnet_ids())}
    known = [name for name in wanted if name in order]
    background = outputs.count - len(order)
    labels = outputs.labels
    if background in (0, 1) and (labels is not None or not background):
        if labels is None or _is_imagenet(labels[background:]):
            return {name: order[name] + background for name in known}
        return {}
    if labels is None:
        return {}
    spelt = _by_name([imagenet_labels()[order[name]] for name in known], labels)
    return {name: spelt[label] for name in known if (label := imagenet_labels()[order[name]]) in spelt}


def _is_imagenet(labels: Sequence[str]) -> bool:
    """Returns whether 1,000 labels are ImageNet's in its order, under whatever spelling."""
    alike = sum(
        _plain(ours) in (_plain(theirs), _plain(_first_synonym(theirs)))
        for ours, theirs in zip(imagenet_labels(), labels, strict=True)
    )
    return alike >= _SAME_NAMES * len(labels)
