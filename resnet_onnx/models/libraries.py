"""Networks of timm and torchvision by name: ``timm:resnet50d``, ``torchvision:resnext50_32x4d``.

The module comes from the library's own factory, and so do preprocessing, labels and weights. A name may say which of
the library's weights are meant, behind a point, as timm writes it: ``timm:resnet50.a1_in1k``,
``torchvision:resnet50.IMAGENET1K_V1``. The libraries load when one of their networks is named.
"""

from __future__ import annotations

import difflib
import fnmatch
import importlib.util
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from resnet_onnx.models import catalog
from resnet_onnx.models.catalog import CatalogEntry
from resnet_onnx.models.configs import Library, LibraryConfig
from resnet_onnx.models.preprocessing import Preprocessing
from resnet_onnx.models.stated_preprocessing import of_timm, of_torchvision
from runtimes.errors import UsageError, reason

if TYPE_CHECKING:
    from torch import nn

LIBRARIES: tuple[Library, ...] = get_args(Library)

_NEAR, _FEW = 0.6, 3


@dataclass(frozen=True, kw_only=True)
class LibraryName:
    """A network as a library names it.

    Attributes:
        name: As the library's factory takes it.
        tag: Which of its weights; "" for the library's default.
    """

    library: Library
    name: str
    tag: str = ""

    @property
    def tagged(self) -> str:
        """The name with its tag, as timm writes it."""
        return f"{self.name}.{self.tag}" if self.tag else self.name

    def __str__(self) -> str:
        return f"{self.library}:{self.tagged}"


def parse(text: str | None) -> LibraryName | None:
    """Returns the parts of ``timm:NAME[.TAG]`` or ``torchvision:NAME[.TAG]``, None for any other text."""
    library, colon, rest = (text or "").partition(":")
    if not colon or library not in LIBRARIES:
        return None
    name, _, tag = rest.partition(".")
    return LibraryName(library="timm" if library == "timm" else "torchvision", name=name, tag=tag)


def lookup(text: str, *, test_size: bool = False) -> CatalogEntry:
    """Finds a network by name: of the catalog, or ``timm:NAME`` and ``torchvision:NAME``.

    With `test_size` pictures have the size that the library states for testing, where it states one of its own.

    Raises:
        UsageError: There is no such network, weights tag or test size; the fix names near ones.
    """
    named = parse(text)
    if named is not None:
        return _timm_entry(named, test_size) if named.library == "timm" else _torchvision_entry(named, test_size)
    if test_size:
        raise UsageError(
            f"--image-size test is for networks of {' and '.join(LIBRARIES)}, whose libraries may state a second size; "
            f"'{text}' has one",
            fix="--image-size N",
        )
    try:
        return catalog.lookup(text)
    except UsageError as error:
        if advice := elsewhere(text):
            raise UsageError(error.message, fix=advice) from error
        raise


def elsewhere(text: str) -> str:
    """Returns under which names the libraries have a network that the catalog lacks, as advice; "" where none has.

    The libraries' sources are read for it, since importing them would cost seconds for a mistyped name.
    """
    name, _, tag = text.partition(".")
    if not name.isidentifier():
        return ""
    made, tagged = re.compile(rf"^def {name}\(", re.MULTILINE), f"'{text}'"
    found = []
    for library in LIBRARIES:
        if library == "torchvision" and tag:
            continue
        sources = (source for source in _sources(library) if made.search(source))
        if any(not tag or tagged in source for source in sources):
            found.append(f"{library}:{text}")
    return f"{' and '.join(found)} {'have' if len(found) > 1 else 'has'} one of that name" if found else ""


def _sources(library: Library) -> Iterator[str]:
    """Yields the files in which a library registers its networks."""
    package = importlib.util.find_spec(library)  # found, not imported
    for folder in list(package.submodule_search_locations or []) if package else []:
        for path in sorted(Path(folder, "models").glob("*.py")):
            source = path.read_text(encoding="utf-8", errors="replace")
            if "@register_model" in source:
                yield source


def names(library: Library, pattern: str = "*") -> list[str]:
    """Returns the names of a library's networks that a shell pattern matches, in the library's order."""
    return [name for name in _all_names(library) if fnmatch.fnmatchcase(name, pattern)]


@cache
def _all_names(library: Library) -> tuple[str, ...]:
    if library == "timm":
        with _quiet():
            import timm
        return tuple(timm.list_models())
    import torchvision

    return tuple(torchvision.models.list_models(module=torchvision.models))


def timm_cfg(named: LibraryName) -> Any:
    """Returns timm's ``PretrainedCfg`` of a network and tag; that of its default weights without a tag.

    Raises:
        UsageError: timm has no such network or tag.
    """
    _check_name(named)
    with _quiet():
        from timm.models import PretrainedCfg, get_arch_pretrained_cfgs, get_pretrained_cfg

    try:
        return get_pretrained_cfg(named.tagged) or PretrainedCfg()
    except RuntimeError as error:
        tags = [name.partition(".")[2] for name in get_arch_pretrained_cfgs(named.name)]
        raise _no_tag(named, [tag for tag in tags if tag]) from error


def torchvision_weights(named: LibraryName) -> Any:
    """Returns torchvision's weights value of a network and tag; its default without a tag, None where it has none.

    Raises:
        UsageError: torchvision has no such network or weights.
    """
    _check_name(named)
    from torchvision.models import get_model_weights

    known = get_model_weights(named.name)
    if not named.tag:
        return known.DEFAULT if len(known) else None
    if named.tag not in known.__members__:
        raise _no_tag(named, list(known.__members__))
    return known[named.tag]


def published(text: str) -> tuple[tuple[str, ...], str | None]:
    """Returns the tags of a library's trained weights, the default first, and the license stated for that one.

    There are none for a name of the catalog.
    """
    named = parse(text)
    if named is None:
        return (), None
    if named.library == "torchvision":
        weights = torchvision_weights(named)
        if weights is None:
            return (), None
        return tuple(dict.fromkeys([weights.name, *type(weights).__members__])), torchvision_license(weights)
    from timm.models import get_arch_pretrained_cfgs

    default = timm_cfg(named)
    tags = [cfg.tag or "" for cfg in get_arch_pretrained_cfgs(named.name).values() if cfg.has_weights]
    first = [default.tag or ""] if default.has_weights else []
    return tuple(tag or "default" for tag in dict.fromkeys([*first, *tags])), default.license


def torchvision_license(weights: Any) -> str | None:
    """Returns the license that the metadata of weights states; SWAG's file, which it links to, is CC-BY-NC-4.0."""
    stated = weights.meta.get("license")
    return None if stated is None else f"CC-BY-NC-4.0 ({stated})" if "SWAG" in stated else str(stated)


def build_module(config: LibraryConfig, *, stochastic_depth: float = 0.0) -> nn.Module:
    """Calls the library's own factory, which initialises the weights from torch's global random state.

    `stochastic_depth` is the share of steps that leave out the last residual block; earlier blocks have less of it.

    Raises:
        UsageError: The library has no such network, or can't build it so.
    """
    _check_name(LibraryName(library=config.library, name=config.name))
    try:
        return _call_factory(config, stochastic_depth)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise UsageError(
            f"{config.library} can't build {config.name} with {config.num_classes} classes"
            f"{' and stochastic depth' if stochastic_depth else ''}: {reason(error)}"
        ) from error


def build_skeleton(config: LibraryConfig) -> nn.Module:
    """Builds a library's network on torch's meta device; raises as ``build_module``."""
    import torch

    _check_name(LibraryName(library=config.library, name=config.name))
    try:
        with torch.device("meta"):
            return _call_factory(config)
    except Exception:  # some factories compute with numbers, which there are none of on the meta device
        with torch.random.fork_rng(devices=[]):
            return build_module(config).to("meta")


def _call_factory(config: LibraryConfig, stochastic_depth: float = 0.0) -> nn.Module:
    with _quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module: nn.Module
        if config.library == "timm":
            import timm

            more = {"drop_path_rate": stochastic_depth} if stochastic_depth else {}
            module = timm.create_model(config.name, num_classes=config.num_classes, in_chans=config.in_channels, **more)
        else:
            import torchvision

            more = {"stochastic_depth_prob": stochastic_depth} if stochastic_depth else {}
            module = torchvision.models.get_model(config.name, weights=None, num_classes=config.num_classes, **more)
    return module


@cache
def classifier_of(config: LibraryConfig) -> str:
    """Returns the name of the layer that gives the scores: the library's classifier, or the last layer with weights."""
    from torch import nn

    module = build_skeleton(config)
    ask: Any = getattr(module, "get_classifier", None)
    asked = ask() if ask is not None else None
    layers = [name for name, part in module.named_modules() if part is asked and name]
    linear = [name for name, part in module.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)]
    return str((layers or linear)[-1])


# ---- entries ---------------------------------------------------------------------------------------------------------


def _timm_entry(named: LibraryName, test_size: bool) -> CatalogEntry:
    cfg = timm_cfg(named).to_dict()
    with _quiet():
        from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_data_config

    usual, tested = (resolve_data_config(pretrained_cfg=cfg, use_test_size=testing) for testing in (False, True))
    if test_size and tested == usual:
        raise UsageError(
            f"timm states one picture size for {named.tagged}, {usual['input_size'][-1]}, none for testing"
        )
    chosen = tested if test_size else usual
    preprocessing = of_timm({**chosen, "crop_mode": "center"})
    if preprocessing is None:
        told = ", ".join(f"{name} {value}" for name, value in chosen.items())
        raise UsageError(
            f"{named}: timm prepares its pictures with {told}; "
            "here they have three channels and are scaled by bilinear or bicubic interpolation"
        )
    subset = infer_imagenet_subset(cfg)
    note = _preparation("timm", preprocessing)
    if test_size:
        note = note.replace("states:", "states for testing:")
    elif tested != usual and (other := of_timm({**tested, "crop_mode": "center"})) is not None:
        note += f"; for testing it states shorter side {other.resize}, crop {other.image_size}: --image-size test"
    notes = [note]
    if chosen["crop_mode"] != "center":
        notes.append(
            f"timm crops by '{chosen['crop_mode']}', here the centre is taken: its accuracy may not be reached"
        )
    return CatalogEntry(
        name=str(named),
        config=LibraryConfig(library="timm", name=named.name, num_classes=int(cfg["num_classes"])),
        preprocessing=preprocessing,
        dataset="imagenet" if subset == "imagenet-1k" else None,
        labels=None if subset in (None, "imagenet-1k") else tuple(ImageNetInfo(subset).label_descriptions()),
        notes=tuple(notes),
    )


def _torchvision_entry(named: LibraryName, test_size: bool) -> CatalogEntry:
    weights = torchvision_weights(named)
    if test_size:
        raise UsageError(f"torchvision states one picture size for {named.tagged}, none for testing")
    categories: tuple[str, ...] = ()
    if weights is None:
        preprocessing = Preprocessing()
        note = "torchvision states nothing about its pictures: ImageNet's usual preparation is assumed"
    else:
        preprocessing, categories = of_torchvision(weights), tuple(weights.meta.get("categories", ()))
        note = _preparation("torchvision", preprocessing)
    imagenet = len(categories) in (0, 1000)
    return CatalogEntry(
        name=str(named),
        config=LibraryConfig(library="torchvision", name=named.name, num_classes=len(categories) or 1000),
        preprocessing=preprocessing,
        dataset="imagenet" if imagenet else None,
        labels=None if imagenet else categories,
        notes=(note,),
    )


def _preparation(library: str, found: Preprocessing) -> str:
    return (
        f"pictures are prepared as {library} states: shorter side {found.resize}, crop {found.image_size}, "
        f"{found.interpolation}"
    )


def _check_name(named: LibraryName) -> None:
    if named.name.isidentifier() and named.name in names(named.library):
        return
    near = difflib.get_close_matches(named.name, names(named.library), n=_FEW, cutoff=_NEAR)
    raise UsageError(
        f"{named.library} has no network named '{named.name}'"
        + (f": did you mean {' or '.join(f'{named.library}:{name}' for name in near)}?" if near else ""),
        fix=f"resnet-onnx models --source {named.library} --filter 'resnet*' lists its names",
    )


def _no_tag(named: LibraryName, known: list[str]) -> UsageError:
    return UsageError(
        f"{named.library} has no weights '{named.tag}' for {named.name}",
        fix=f"it has {', '.join(known)}" if known else f"it has none: name it {named.library}:{named.name}",
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps timm's log to itself: what it says there is said here in messages."""
    logger = logging.getLogger("timm")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
