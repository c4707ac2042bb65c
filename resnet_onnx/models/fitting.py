"""Finding a network in a weights file, and fitting its tensors to an architecture of the catalog or of a library.

A network is recognised by its tensors, not by the keys that a training script put around it: whatever mapping of the
file holds all its layers, behind any common prefix, is one. Tensors beside it are left out and named. Where several
networks in a file fit (the raw weights and their moving average), the caller has to say which.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor

from resnet_onnx.models import catalog, libraries
from resnet_onnx.models.build import build_skeleton
from resnet_onnx.models.configs import (
    SHORTCUT_OPTIONS,
    LibraryConfig,
    NetworkConfig,
    ResNetConfig,
    VGGConfig,
    with_classes,
)
from resnet_onnx.models.weights_file import StateDict, WeightsFile
from runtimes.errors import BadWeights, UsageError

T = TypeVar("T")

_BATCHES_TRACKED = ".num_batches_tracked"
_NAMED_IN_MESSAGE = 3
_MOST_CANDIDATES = 64
_AVERAGED = re.compile(r"ema|average|swa", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A network's weights out of a file.

    Attributes:
        config: The architecture, with the weights' own classes and shortcuts.
        state: float32 copies under the architecture's names; without the head where `head_problem` says why.
        entry: Which entry of the file they were, "" where there was only one.
        left_out: Names of the tensors that are not part of the network; those of another mapping by its key.
        head_problem: Why the classifier's weights don't fit, or "".
    """

    config: NetworkConfig
    state: StateDict
    entry: str = ""
    left_out: tuple[str, ...] = ()
    head_problem: str = ""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of the choice, a sentence each."""
        if not self.left_out:
            return ()
        return (f"not part of the network, and left out of the weights file: {', '.join(self.left_out)}",)


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """A part of a file that may be a network: the tensors of one mapping behind one prefix, in our names."""

    path: str
    name: str
    tensors: StateDict
    beside: tuple[str, ...]


def fit(config: NetworkConfig, weights: WeightsFile, *, entry: str | None = None, head: bool = True) -> Fitted:
    """Fits the weights of a file to an architecture.

    Names of torchvision, timm and the common CIFAR repositories are understood, behind any prefix; for a library's
    network its own names. The number of classes and the shortcut option are the weights' own; every layer of the
    network must be there and fit exactly.

    Args:
        config: The architecture.
        weights: The file.
        entry: Which of several networks in the file; None where there is one.
        head: Whether the classifier has to fit too; a training may draw a new one.

    Raises:
        BadWeights: Tensors are missing or of another shape (the fix names the network that the weights fit, where there
            is one), or one of them is not floating or has NaN, infinity or a negative variance.
        UsageError: Several networks fit and `entry` is None, or `entry` names none.
    """
    candidates = list(_candidates(weights, _Names.of(config)))
    fitting = _that_fit(config, candidates, head=True)
    usable = fitting or _that_fit(config, candidates, head=False)
    chosen = _chosen(usable, entry, weights.origin)
    if chosen is None:
        raise _misfit(config, candidates, weights.origin)
    candidate, found = chosen
    problem = "" if fitting else _head_problem(found, candidate.tensors)
    if problem and head:
        raise BadWeights(
            f"{weights.origin} has all layers of {describe(found)} but another head: {problem}",
            fix="resnet-onnx train --weights starts a new head on top of them",
        )
    return Fitted(
        config=found,
        state=_copied(found, candidate.tensors, weights.origin, head=not problem),
        entry=candidate.name if len(usable) > 1 or entry else "",
        left_out=(*candidate.beside, *_elsewhere(weights, candidate)),
        head_problem=problem,
    )


def recognise(state: Mapping[str, Tensor]) -> list[str]:
    """Names the networks of the catalog that have exactly these layers, whatever their number of classes.

    Args:
        state: Tensors by name, as an entry of a ``WeightsFile`` has them.
    """
    found = dict.fromkeys(
        name for one in _of_entry("", dict(state), _OURS) for name in _recognised(one.tensors) if not one.beside
    )
    return list(found)


def check_exact(config: NetworkConfig, state: Mapping[str, Tensor], *, origin: str) -> None:
    """Raises ``BadWeights`` unless tensors have exactly the names and shapes of an architecture."""
    if _complaints(_shapes(config), state):
        raise _misfit(config, [_Candidate(path="", name="", tensors=dict(state), beside=())], origin)


def describe(config: NetworkConfig) -> str:
    """Returns the catalog's or library's name of an architecture, or what kind of net it is."""
    if isinstance(config, LibraryConfig):
        return f"{config.library}:{config.name}"
    six = config.depth % 6 == 2 and config.depth > 2
    for name in [*catalog.names(), *([f"cifar-{kind}{config.depth}" for kind in ("resnet", "plain")] if six else [])]:
        known = catalog.lookup(name)
        if with_classes(config, known.config.num_classes) == known.config:
            return name
    if isinstance(config, VGGConfig):
        return f"vgg{config.depth}"
    kind = "plain net" if config.shortcut == "none" else f"ResNet with shortcut option {config.shortcut}"
    return f"a {kind}, {config.depth} layers"


# ---- candidates ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Names:
    """How the tensors of a kind of network are named.

    Attributes:
        anchors: The first layer: what stands before its name stands before all names.
        roots: Patterns of where layers lie; anything there that the network lacks is a misfit.
        translated: Whether other repositories' names for the same layers are understood.
    """

    anchors: tuple[str, ...]
    roots: tuple[str, ...]
    translated: bool

    @classmethod
    def of(cls, config: NetworkConfig) -> _Names:
        """Returns the names of an architecture: the catalog's, or the library's own."""
        if not isinstance(config, LibraryConfig):
            return _OURS
        names = list(_shapes(config))
        return cls(
            anchors=(names[0],),
            roots=tuple(dict.fromkeys(re.escape(name.partition(".")[0]) for name in names)),
            translated=False,
        )

    def belongs(self, name: str) -> bool:
        """Whether a name lies where the layers of the network do."""
        first = name.partition(".")[0]
        return any(re.fullmatch(root, first) for root in self.roots)


_OURS = _Names(
    anchors=("conv1.weight", "conv1.0.weight", "features.0.weight", "stem.conv.weight"),
    roots=("conv1", "bn1", r"layer\d+", "norm", "fc", "features", "classifier"),
    translated=True,
)


def _candidates(weights: WeightsFile, names: _Names) -> Iterator[_Candidate]:
    """Yields what may be a network; the same tensors under two names count once."""
    seen: list[StateDict] = []
    found = [one for path, tensors in weights.entries.items() for one in _of_entry(path, tensors, names)]
    for one in found[:_MOST_CANDIDATES]:
        if not any(_same(one.tensors, other) for other in seen):
            seen.append(one.tensors)
            yield one


def _of_entry(path: str, tensors: StateDict, names: _Names) -> Iterator[_Candidate]:
    prefixes = dict.fromkeys(  # in the order of the file, so that messages are the same each time
        name.removesuffix(anchor)
        for name in tensors
        for anchor in names.anchors
        if name == anchor or name.endswith(f".{anchor}")
    )
    # A block's own first layer is called like the network's: what lies below another prefix is a part of that.
    outermost = [p for p in sorted(prefixes, key=len) if not re.search(r"(^|\.)layer\d+\.\d+\.$", p)] or [""]
    for prefix in outermost:
        inside = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        beside = [name for name in tensors if not name.startswith(prefix)]
        ours: StateDict = {}
        for name, tensor in inside.items():
            new, fitted = (
                _translated(name, tensor, "stem.conv.weight" in inside) if names.translated else (name, tensor)
            )
            if new in ours:
                raise BadWeights(f"two tensors are both '{new}'; one of them is named '{prefix}{name}'")
            ours[new] = fitted
        foreign = [name for name in ours if not names.belongs(name)]
        yield _Candidate(
            path=path,
            name=".".join(part for part in (path, prefix.rstrip(".") if len(outermost) > 1 else "") if part),
            tensors={name: tensor for name, tensor in ours.items() if names.belongs(name)},
            beside=(*beside, *(prefix + name for name in foreign)),
        )


def _elsewhere(weights: WeightsFile, chosen: _Candidate) -> Iterator[str]:
    """Names what else a file holds: tensors beside the wrapper one by one, other mappings by their first key."""
    counts: dict[str, int] = {}
    for path, tensors in weights.entries.items():
        if path == "" != chosen.path:
            yield from tensors
        elif path != chosen.path:
            key = path.partition(".")[0]
            counts[key] = counts.get(key, 0) + len(tensors)
    for key, count in counts.items():
        yield f"{key} ({count} tensor{'s' if count > 1 else ''})"


def _same(a: StateDict, b: StateDict) -> bool:
    return a.keys() == b.keys() and all(
        a[name].shape == b[name].shape and a[name].dtype == b[name].dtype and torch.equal(a[name], b[name])
        for name in a
    )


def _chosen(
    usable: Sequence[tuple[_Candidate, NetworkConfig]], entry: str | None, origin: str
) -> tuple[_Candidate, NetworkConfig] | None:
    names = [one.name for one, _ in usable]
    if entry is not None and usable:
        for pair in usable:
            if pair[0].name == entry:
                return pair
        raise UsageError(
            f"--weights-entry {entry}: {origin} holds no such network that fits",
            fix=f"the entries that fit: {', '.join(map(_entry_name, names))}",
        )
    if len(usable) > 1:
        listed = " and ".join(
            f"'{_entry_name(name)}'{' (a moving average)' if _AVERAGED.search(name) else ''}" for name in names
        )
        raise UsageError(
            f"{origin} holds {len(usable)} networks that fit: {listed}",
            fix="\n".join(f"--weights-entry {_entry_name(name)}" for name in names),
        )
    return usable[0] if usable else None


def _entry_name(name: str) -> str:
    return name or "."


# ---- fitting ---------------------------------------------------------------------------------------------------------

_TIMM_VGG = {"pre_logits.fc1.": "classifier.0.", "pre_logits.fc2.": "classifier.3.", "head.fc.": "classifier.6."}


_TIMM_PRE_ACTIVATION = (
    (r"^stem\.conv\.", "conv1."),
    (r"^stages\.(\d+)\.blocks\.(\d+)\.norm(\d)\.", r"stages.\1.blocks.\2.bn\3."),
    (r"^stages\.(\d+)\.blocks\.(\d+)\.downsample\.conv\.", r"stages.\1.blocks.\2.downsample.0."),
    (r"^head\.fc\.", "fc."),
)


def _translated(name: str, tensor: Tensor, timm_pre_activation: bool) -> tuple[str, Tensor]:
    """Returns a tensor under torchvision's name for it."""
    if timm_pre_activation:
        for pattern, ours in _TIMM_PRE_ACTIVATION:
            name = re.sub(pattern, ours, name)
        name = re.sub(r"^stages\.(\d+)\.blocks\.", lambda found: f"layer{int(found[1]) + 1}.", name)
        return name, tensor.flatten(1) if name == "fc.weight" else tensor
    for theirs, ours in _TIMM_VGG.items():
        if name.startswith(theirs):
            # timm writes fully connected layers as convolutions over the 7×7 map: the same numbers in the same order.
            return ours + name.removeprefix(theirs), tensor.flatten(1) if tensor.ndim == 4 else tensor
    if name.startswith("linear."):
        return "fc." + name.removeprefix("linear."), tensor
    return re.sub(r"^(layer\d+\.\d+)\.shortcut\.", r"\1.downsample.", name), tensor


def _that_fit(
    config: NetworkConfig, candidates: Sequence[_Candidate], *, head: bool
) -> list[tuple[_Candidate, NetworkConfig]]:
    found = ((one, _fitting_config(config, one.tensors, head=head)) for one in candidates)
    return [(one, fitting) for one, fitting in found if fitting is not None]


def _fitting_config(config: NetworkConfig, given: Mapping[str, Tensor], *, head: bool) -> NetworkConfig | None:
    """Returns the architecture in the form that the tensors have exactly, or None."""
    config = _with_classes_of(config, given)
    for candidate in _same_but_for_shortcuts(config):
        expected = _shapes(candidate)
        if not head:
            expected, given = _without_head(expected, candidate), _without_head(given, candidate)
        if not _complaints(expected, given):
            return candidate
    return None


def _with_classes_of(config: NetworkConfig, given: Mapping[str, Tensor]) -> NetworkConfig:
    classifier = given.get(f"{classifier_name(config)}.weight")
    if classifier is not None and classifier.ndim == 2 and classifier.shape[0] > 0:
        return with_classes(config, classifier.shape[0])
    return config


def _same_but_for_shortcuts(config: NetworkConfig) -> Iterator[NetworkConfig]:
    """Yields the architecture, then with the other shortcut options; a plain net stays plain."""
    yield config
    if isinstance(config, ResNetConfig) and config.shortcut != "none":
        for option in SHORTCUT_OPTIONS:
            if option != config.shortcut:
                yield replace(config, shortcut=option)


@lru_cache(maxsize=256)
def _shapes(config: NetworkConfig) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in build_skeleton(config).state_dict().items()}


def classifier_name(config: NetworkConfig) -> str:
    """Returns the name of the layer that gives the scores."""
    if isinstance(config, LibraryConfig):
        return libraries.classifier_of(with_classes(config, 1000))
    return "fc" if isinstance(config, ResNetConfig) else "classifier.6"


def _without_head(tensors: Mapping[str, T], config: NetworkConfig | None = None) -> dict[str, T]:
    heads = (f"{classifier_name(config)}.",) if isinstance(config, LibraryConfig) else ("fc.", "classifier.6.")
    return {k: v for k, v in tensors.items() if not k.startswith(heads)}


def _head_problem(config: NetworkConfig, given: Mapping[str, Tensor]) -> str:
    """Says which tensors of the classifier are not as the network has them."""
    name = classifier_name(config)
    wanted = _shapes(config)[f"{name}.weight"]
    found = [f"{key} {list(tensor.shape)}" for key, tensor in given.items() if key.startswith((f"{name}.", "fc."))]
    have = ", ".join(found) if found else "none"
    return f"{name}.weight [classes, {wanted[1]}] and {name}.bias [classes] are expected, the file has {have}"


def _complaints(expected: Mapping[str, torch.Size], given: Mapping[str, Tensor]) -> list[str]:
    """Says what keeps tensors from fitting, each kind of fault with its first few names; empty where they fit."""
    missing = [name for name in expected if name not in given and not name.endswith(_BATCHES_TRACKED)]
    unexpected = [name for name in given if name not in expected]
    misshaped = [
        f"{name} is {list(given[name].shape)}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in given and not name.endswith(_BATCHES_TRACKED) and given[name].shape != shape
    ]
    return [
        f"{len(names)} {what} ({_named(names)})"
        for names, what in ((missing, "missing"), (unexpected, "unexpected"), (misshaped, "of another shape"))
        if names
    ]


def _named(names: Sequence[str]) -> str:
    return f"{', '.join(names[:_NAMED_IN_MESSAGE])}{', …' if len(names) > _NAMED_IN_MESSAGE else ''}"


def _misfit(config: NetworkConfig, candidates: Sequence[_Candidate], origin: str) -> BadWeights:
    expected = _shapes(config)
    nearest = max(
        candidates, key=lambda one: sum(one.tensors[n].shape == s for n, s in expected.items() if n in one.tensors),
        default=_Candidate(path="", name="", tensors={}, beside=()),
    )  # fmt: skip
    given = nearest.tensors
    fitting = [] if isinstance(config, LibraryConfig) else _recognised(given)
    if fitting:
        fix = f"these look like {fitting[0]}: --model {fitting[0]}"
    elif "features.1.running_mean" in given:
        fix = "these look like a VGG with batch normalisation, which the catalog does not have"
    elif isinstance(config, LibraryConfig):
        fix = f"expected the weights of {config.library}'s own {config.name}, under the names that it gives them"
    else:
        fix = "these tensors fit no network of the catalog (resnet-onnx models lists them)"
    problems = _complaints(_shapes(_with_classes_of(config, given)), given)
    return BadWeights(f"{origin} does not fit {describe(config)}: tensors {'; '.join(problems)}", fix=fix)


def _recognised(given: Mapping[str, Tensor]) -> list[str]:
    shapes = _layers({name: tensor.shape for name, tensor in given.items()})
    blocks = len({name.split(".")[1] for name in given if name.startswith("layer1.")})
    names = dict.fromkeys([*catalog.names(), *([f"cifar-resnet{6 * blocks + 2}"] if 0 < blocks <= 1000 else [])])
    return [name for name in names if shapes and _layers(_shapes(catalog.lookup(name).config)) == shapes]


def _layers(shapes: Mapping[str, torch.Size]) -> dict[str, torch.Size]:
    return {k: v for k, v in _without_head(shapes).items() if not k.endswith(_BATCHES_TRACKED)}


def _copied(config: NetworkConfig, given: Mapping[str, Tensor], origin: str, *, head: bool) -> StateDict:
    expected = _shapes(config) if head else _without_head(_shapes(config), config)
    return {
        # It counts training steps: absent in old files, and not used afterwards.
        name: torch.zeros((), dtype=torch.int64)
        if name.endswith(_BATCHES_TRACKED)
        else _sound_float32(name, given[name], origin)
        for name in expected
    }


def _sound_float32(name: str, tensor: Tensor, origin: str) -> Tensor:
    if not tensor.is_floating_point():
        raise BadWeights(f"{origin}: '{name}' is {str(tensor.dtype).removeprefix('torch.')}, expected a floating dtype")
    if not torch.isfinite(tensor.float() if tensor.element_size() == 1 else tensor).all():
        raise BadWeights(
            f"{origin}: '{name}' has NaN or infinity in it", fix="use a checkpoint from before training diverged"
        )
    fitted = tensor.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    if not torch.isfinite(fitted).all():
        raise BadWeights(f"{origin}: '{name}' has values too large for float32")
    if name.endswith(".running_var") and (fitted < 0).any():
        raise BadWeights(f"{origin}: '{name}' has a negative variance in it")
    return fitted
