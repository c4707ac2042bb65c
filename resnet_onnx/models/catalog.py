"""Names of networks: architecture, preprocessing and what was published about each."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace
from typing import Any, Literal

from resnet_onnx.models.configs import Block, NetworkConfig, ResNetConfig, Shortcut, Variant, VGGConfig
from resnet_onnx.models.preprocessing import Preprocessing
from runtimes.errors import UsageError

RESNET_PAPER = "arXiv:1512.03385"
"""He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition."""
PRE_ACTIVATION_PAPER = "arXiv:1603.05027"
"""He, Zhang, Ren, Sun: Identity Mappings in Deep Residual Networks."""
WIDE_PAPER = "arXiv:1605.07146"
"""Zagoruyko, Komodakis: Wide Residual Networks."""
RESNEXT_PAPER = "arXiv:1611.05431"
"""Xie, Girshick, Dollár, Tu, He: Aggregated Residual Transformations for Deep Neural Networks."""
SQUEEZE_PAPER = "arXiv:1709.01507"
"""Hu, Shen, Albanie, Sun, Wu: Squeeze-and-Excitation Networks."""
TRICKS_PAPER = "arXiv:1812.01187"
"""He, Zhang, Zhang, Zhang, Xie, Li: Bag of Tricks for Image Classification with Convolutional Neural Networks."""
VGG_PAPER = "arXiv:1409.1556"
"""Simonyan, Zisserman: Very Deep Convolutional Networks for Large-Scale Image Recognition."""

CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
"""Channel means of CIFAR-10's training set in RGB, fractions of 255."""
CIFAR10_STD = (0.2470, 0.2435, 0.2616)
"""Channel standard deviations of CIFAR-10's training set in RGB, over all pixels, fractions of 255."""

_IMAGENET = Preprocessing(image_size=224, resize=256)
_CIFAR = Preprocessing(image_size=32, resize=32, mean=CIFAR10_MEAN, std=CIFAR10_STD)

_PYTORCH_CIFAR = Preprocessing(image_size=32, resize=32, mean=CIFAR10_MEAN, std=(0.2023, 0.1994, 0.2010))
"""As kuangliu/pytorch-cifar prepares pictures (main.py): its deviations are means of those within single pictures."""

DEPTHS = (18, 34, 50, 101, 152)
"""The paper's ImageNet ResNets (table 1)."""
CIFAR_DEPTHS = (20, 32, 44, 56, 110)
"""The paper's CIFAR-10 nets that the catalog lists (table 6); any other depth 6n+2 can be looked up too."""
_DEEPEST_CIFAR = 6002


@dataclass(frozen=True, kw_only=True)
class PublishedError:
    """One printed error rate.

    Attributes:
        top1_percent: Top-1 error in percent, or None where the source has none.
        top5_percent: Top-5 error in percent, or None where the source has none.
        protocol: How it was measured.
        source: Paper and table.
    """

    top1_percent: float | None
    top5_percent: float | None
    protocol: str
    source: str


@dataclass(frozen=True, kw_only=True)
class Published:
    """What a paper prints about a network; never used in a computation.

    Attributes:
        multiply_adds_g: Multiply-adds for one picture in 10⁹, as printed, or None.
        multiply_adds_source: Paper and table, or "".
        parameters_m: Parameters in 10⁶, as printed, or None.
        parameters_source: Paper and table, or "".
        errors: Error rates; the one to quote first.
        note: What a reader must know to compare, or "".
    """

    multiply_adds_g: float | None = None
    multiply_adds_source: str = ""
    parameters_m: float | None = None
    parameters_source: str = ""
    errors: tuple[PublishedError, ...] = ()
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """Trained weights that torchvision publishes for exactly this architecture and preprocessing.

    Attributes:
        builder: torchvision's model name.
        weights: Member of the builder's weights enum.
        top1_percent: Top-1 accuracy on ImageNet's validation set in percent, by torchvision.
        top5_percent: Top-5 accuracy, likewise.
    """

    builder: str
    weights: str
    top1_percent: float
    top5_percent: float

    @property
    def enum_name(self) -> str:
        """The full name of the weights, as ``torchvision.models.get_weight`` takes it."""
        spelt = self.builder
        for theirs, enum in _ENUM_SPELLING:
            spelt = spelt.replace(theirs, enum)
        return f"{spelt}_Weights.{self.weights}"


_ENUM_SPELLING = (
    *(("resnet", "ResNet"), ("resnext", "ResNeXt"), ("wide", "Wide"), ("vgg", "VGG")),
    *(("x4d", "X4D"), ("x8d", "X8D")),
)
"""How torchvision writes a builder's name in that of its weights."""


@dataclass(frozen=True, kw_only=True)
class CatalogEntry:
    """A network that can be named.

    Attributes:
        name: What the user types.
        config: The architecture.
        preprocessing: From a picture to the network's input.
        dataset: What the network is for; its labels are that data set's. None is another one.
        published: What was printed about it, or None.
        pretrained: Where trained weights can be downloaded, or None.
        labels: Names of the outputs, of a network for another data set; or None.
        notes: What a user should know of the choices in it.
    """

    name: str
    config: NetworkConfig
    preprocessing: Preprocessing
    dataset: Literal["imagenet", "cifar10"] | None
    published: Published | None = None
    pretrained: Pretrained | None = None
    labels: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()

    @property
    def image_size(self) -> int:
        """Side of the input picture, pixels."""
        return self.preprocessing.image_size

    @property
    def depth(self) -> int:
        """Weighted layers, as in the name."""
        return self.config.depth

    @property
    def variant(self) -> Variant | None:
        """The variant of a bottleneck net, None where there is no such difference."""
        config = self.config
        return config.variant if isinstance(config, ResNetConfig) and config.block == "bottleneck" else None

    def published_json(self) -> dict[str, Any] | None:
        """Returns the published figures as plain values, for ``models --json``; None where there are none."""
        if self.published is None and self.pretrained is None:
            return None
        published = self.published or Published()
        return {
            "multiply_adds_g": published.multiply_adds_g,
            "multiply_adds_source": published.multiply_adds_source or None,
            "parameters_m": published.parameters_m,
            "parameters_source": published.parameters_source or None,
            "errors": [
                {
                    "top1_percent": error.top1_percent,
                    "top5_percent": error.top5_percent,
                    "protocol": error.protocol,
                    "source": error.source,
                }
                for error in published.errors
            ],
            "note": published.note or None,
            "torchvision": None
            if self.pretrained is None
            else {
                "weights": self.pretrained.enum_name,
                "top1_percent": self.pretrained.top1_percent,
                "top5_percent": self.pretrained.top5_percent,
            },
        }


def names() -> list[str]:
    """Returns the catalog's names in the order in which they are listed."""
    return list(_CATALOG)


def lookup(name: str) -> CatalogEntry:
    """Finds a network by name.

    Args:
        name: A name of the catalog, or ``cifar-resnetN`` or ``cifar-plainN`` with any N = 6n+2.

    Raises:
        UsageError: There is no such network; the fix names near ones.
    """
    if entry := _CATALOG.get(name):
        return entry
    if cifar := re.fullmatch(r"cifar-(resnet|plain)(\d{1,6})", name):
        depth = int(cifar[2])
        if depth % 6 == 2 and 8 <= depth <= _DEEPEST_CIFAR:
            return _cifar("A" if cifar[1] == "resnet" else "none", depth)
        raise UsageError(
            f"no {name}: CIFAR nets have 6n+2 layers, n at least 1 ({RESNET_PAPER}, section 4.2), not {depth}",
            fix=f"the nearest is cifar-{cifar[1]}{min(max(6 * round((depth - 2) / 6) + 2, 8), _DEEPEST_CIFAR)}",
        )
    if imagenet := re.fullmatch(r"resnet(\d{1,6})(-v1(?:\.5)?)?", name):
        by_depth(int(imagenet[1]))
        raise UsageError(
            f"no network is named '{name}': "
            + ("v1.5 is the default" if imagenet[2] == "-v1.5" else "basic blocks have no v1 and v1.5"),
            fix=f"use resnet{imagenet[1]}",
        )
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    near = [known for known in names() if known.replace("-", "") == plain]
    near = near or difflib.get_close_matches(name.lower(), names(), n=3, cutoff=0.7)
    raise UsageError(
        f"no network is named '{name}'" + (f": did you mean {' or '.join(near)}?" if near else ""),
        fix="resnet-onnx models lists them all",
    )


def by_depth(depth: int, variant: Variant | None = None) -> CatalogEntry:
    """Finds an ImageNet ResNet by its depth.

    Args:
        depth: 18, 34, 50, 101 or 152.
        variant: ``"v1"`` or ``"v1.5"``; None takes v1.5. Without effect on 18 and 34.

    Raises:
        UsageError: There is no ResNet of that depth, or no such variant.
    """
    if variant not in (None, "v1", "v1.5"):
        raise UsageError(f"variant is v1 or v1.5, not '{variant}'")
    if depth not in DEPTHS:
        raise UsageError(
            f"no ResNet of depth {depth}: choose 18, 34, 50, 101 or 152 "
            "(CIFAR nets: --model cifar-resnet20, 32, 44, 56, 110)"
        )
    return lookup(f"resnet{depth}-v1" if variant == "v1" and depth >= 50 else f"resnet{depth}")


# Blocks per stage: arXiv:1512.03385, table 1.
_BASIC_LAYERS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
_BOTTLENECK_LAYERS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}

# Multiply-adds in 10⁹ as printed: arXiv:1512.03385, table 1 (VGG: section 4.1).
_PRINTED_MULTIPLY_ADDS_G = {18: 1.8, 34: 3.6, 50: 3.8, 101: 7.6, 152: 11.3}

_TEN_CROP = "ImageNet validation, 10-crop"
_SINGLE_MODEL = "ImageNet validation, one model, best reported protocol"
_ERRORS = {
    18: (PublishedError(top1_percent=27.88, top5_percent=None, protocol=_TEN_CROP, source=f"{RESNET_PAPER}, table 2"),),
    34: (
        PublishedError(
            top1_percent=24.52, top5_percent=7.46, protocol=f"{_TEN_CROP}, option B", source=f"{RESNET_PAPER}, table 3"
        ),
        PublishedError(
            top1_percent=25.03, top5_percent=7.76, protocol=f"{_TEN_CROP}, option A", source=f"{RESNET_PAPER}, table 3"
        ),
        PublishedError(
            top1_percent=24.19, top5_percent=7.40, protocol=f"{_TEN_CROP}, option C", source=f"{RESNET_PAPER}, table 3"
        ),
        PublishedError(
            top1_percent=21.84,
            top5_percent=5.71,
            protocol=f"{_SINGLE_MODEL}, option B",
            source=f"{RESNET_PAPER}, table 4",
        ),
    ),
    50: (
        PublishedError(top1_percent=22.85, top5_percent=6.71, protocol=_TEN_CROP, source=f"{RESNET_PAPER}, table 3"),
        PublishedError(
            top1_percent=20.74, top5_percent=5.25, protocol=_SINGLE_MODEL, source=f"{RESNET_PAPER}, table 4"
        ),
    ),
    101: (
        PublishedError(top1_percent=21.75, top5_percent=6.05, protocol=_TEN_CROP, source=f"{RESNET_PAPER}, table 3"),
        PublishedError(
            top1_percent=19.87, top5_percent=4.60, protocol=_SINGLE_MODEL, source=f"{RESNET_PAPER}, table 4"
        ),
    ),
    152: (
        PublishedError(top1_percent=21.43, top5_percent=5.71, protocol=_TEN_CROP, source=f"{RESNET_PAPER}, table 3"),
        PublishedError(
            top1_percent=19.38, top5_percent=4.49, protocol=_SINGLE_MODEL, source=f"{RESNET_PAPER}, table 4"
        ),
    ),
}
_PLAIN_ERRORS = {
    18: (PublishedError(top1_percent=27.94, top5_percent=None, protocol=_TEN_CROP, source=f"{RESNET_PAPER}, table 2"),),
    34: (
        PublishedError(
            top1_percent=28.54, top5_percent=10.02, protocol=_TEN_CROP, source=f"{RESNET_PAPER}, tables 2 and 3"
        ),
    ),
}
# Classification error of configurations D and E at one test scale: arXiv:1409.1556, table 3, trained on [256; 512],
# tested at 384.
_VGG_ERRORS = {16: (25.6, 8.1), 19: (25.5, 8.0)}
_VGG_MULTIPLY_ADDS_G = {16: 15.3, 19: 19.6}
_VGG_PARAMETERS_M = {16: 138, 19: 144}  # arXiv:1409.1556, table 2
# Parameters in 10⁶ and CIFAR-10 test error in percent: arXiv:1512.03385, table 6.
_CIFAR_PRINTED = {
    20: (0.27, 8.75),
    32: (0.46, 7.51),
    44: (0.66, 7.17),
    56: (0.85, 6.97),
    110: (1.7, 6.43),
    1202: (19.4, 7.93),
}

# Accuracy of torchvision's IMAGENET1K_V1 weights, from the `meta` of its weights enums.
_TORCHVISION = {
    "resnet18": (69.758, 89.078),
    "resnet34": (73.314, 91.420),
    "resnet50": (76.130, 92.862),
    "resnet101": (77.374, 93.546),
    "resnet152": (78.312, 94.046),
    "resnext50_32x4d": (77.618, 93.698),
    "resnext101_32x8d": (79.312, 94.526),
    "wide_resnet50_2": (78.468, 94.086),
    "wide_resnet101_2": (78.848, 94.284),
    "vgg16": (71.592, 90.382),
    "vgg19": (72.376, 90.876),
}


def _pretrained(builder: str) -> Pretrained:
    """V1 weights where torchvision has two: only they were trained for the 256/224 preprocessing of the paper."""
    top1, top5 = _TORCHVISION[builder]
    return Pretrained(builder=builder, weights="IMAGENET1K_V1", top1_percent=top1, top5_percent=top5)


def _resnet(depth: int, variant: Variant = "v1.5") -> CatalogEntry:
    name = f"resnet{depth}"
    config: NetworkConfig
    if depth in _BASIC_LAYERS:
        config, is_papers = ResNetConfig(block="basic", layers=_BASIC_LAYERS[depth]), True
    else:
        config = ResNetConfig(block="bottleneck", layers=_BOTTLENECK_LAYERS[depth], variant=variant)
        is_papers = variant == "v1"
    published = Published(
        multiply_adds_g=_PRINTED_MULTIPLY_ADDS_G[depth],
        multiply_adds_source=f"{RESNET_PAPER}, table 1",
        errors=_ERRORS[depth],
        note="" if is_papers else f"printed for {name}-v1, which strides in the first 1×1",
    )
    return CatalogEntry(
        name=name if is_papers is (depth in _BASIC_LAYERS) else f"{name}-v1",
        config=config,
        preprocessing=_IMAGENET,
        dataset="imagenet",
        published=published,
        pretrained=None if depth >= 50 and is_papers else _pretrained(name),
    )


def _plain(depth: int) -> CatalogEntry:
    published = Published(
        multiply_adds_g=3.6 if depth == 34 else None,
        multiply_adds_source=f"{RESNET_PAPER}, section 3.3" if depth == 34 else "",
        errors=_PLAIN_ERRORS[depth],
    )
    return CatalogEntry(
        name=f"plain{depth}",
        config=ResNetConfig(block="basic", layers=_BASIC_LAYERS[depth], shortcut="none"),
        preprocessing=_IMAGENET,
        dataset="imagenet",
        published=published,
    )


def _vgg(depth: Literal[16, 19]) -> CatalogEntry:
    top1, top5 = _VGG_ERRORS[depth]
    published = Published(
        multiply_adds_g=_VGG_MULTIPLY_ADDS_G[depth],
        multiply_adds_source=f"{RESNET_PAPER}, section 4.1",
        parameters_m=_VGG_PARAMETERS_M[depth],
        parameters_source=f"{VGG_PAPER}, table 2",
        errors=(
            PublishedError(
                top1_percent=top1,
                top5_percent=top5,
                protocol="ImageNet validation, dense evaluation at one scale (384)",
                source=f"{VGG_PAPER}, table 3",
            ),
        ),
    )
    return CatalogEntry(
        name=f"vgg{depth}",
        config=VGGConfig(depth=depth),
        preprocessing=_IMAGENET,
        dataset="imagenet",
        published=published,
        pretrained=_pretrained(f"vgg{depth}"),
    )


def _cifar(shortcut: Shortcut, depth: int) -> CatalogEntry:
    blocks = (depth - 2) // 6
    published = None
    if shortcut == "A" and depth in _CIFAR_PRINTED:
        parameters_m, error = _CIFAR_PRINTED[depth]
        source = f"{RESNET_PAPER}, table 6"
        published = Published(
            parameters_m=parameters_m,
            parameters_source=source,
            errors=(PublishedError(top1_percent=error, top5_percent=None, protocol="CIFAR-10 test", source=source),),
            note="best of 5 runs; 6.61 ± 0.16 over them" if depth == 110 else "",
        )
    return CatalogEntry(
        name=f"cifar-{'plain' if shortcut == 'none' else 'resnet'}{depth}",
        config=ResNetConfig(
            block="basic",
            layers=(blocks, blocks, blocks),
            widths=(16, 32, 64),
            stem="cifar",
            shortcut=shortcut,
            num_classes=10,
        ),
        preprocessing=_CIFAR,
        dataset="cifar10",
        published=published,
    )


def _imagenet_on_cifar(depth: int) -> CatalogEntry:
    """An ImageNet ResNet on small pictures, with CIFAR's stem (kuangliu/pytorch-cifar, models/resnet.py)."""
    block: Block = "basic" if depth in _BASIC_LAYERS else "bottleneck"
    layers = _BASIC_LAYERS.get(depth) or _BOTTLENECK_LAYERS[depth]
    return CatalogEntry(
        name=f"resnet{depth}-cifar",
        config=ResNetConfig(block=block, layers=layers, stem="cifar", num_classes=10),
        preprocessing=_PYTORCH_CIFAR,
        dataset="cifar10",
        published=Published(note="the ImageNet network with a 3×3 stem, as in kuangliu/pytorch-cifar"),
    )


# ---- the paper's descendants -----------------------------------------------------------------------------------------

_V15 = "printed for a stride in the first 1×1, here as everywhere today in the 3×3"
_ONE_CROP = "ImageNet validation, one crop"


def _descendant(
    name: str, config: ResNetConfig, published: Published | None = None, *, builder: str = ""
) -> CatalogEntry:
    """Returns a network for ImageNet, or for CIFAR-10 where it has CIFAR's stem; `builder` is torchvision's."""
    cifar = config.stem == "cifar"
    return CatalogEntry(
        name=name,
        config=config,
        preprocessing=_CIFAR if cifar else _IMAGENET,
        dataset="cifar10" if cifar else "imagenet",
        published=published,
        pretrained=_pretrained(builder) if builder else None,
    )


def _bottleneck(depth: int, **changes: Any) -> ResNetConfig:
    return ResNetConfig(block="bottleneck", layers=_BOTTLENECK_LAYERS[depth], **changes)


def _small(block: Block, blocks: int, **changes: Any) -> ResNetConfig:
    """Returns a network with CIFAR's stem and three stages."""
    fields: dict[str, Any] = {"widths": (16, 32, 64), "shortcut": "B", **changes}
    return ResNetConfig(block=block, layers=(blocks,) * 3, stem="cifar", num_classes=10, **fields)


def _error(top1: float, top5: float | None, protocol: str, source: str) -> tuple[PublishedError, ...]:
    return (PublishedError(top1_percent=top1, top5_percent=top5, protocol=protocol, source=source),)


def _pre_activation() -> list[CatalogEntry]:
    tested, table = "CIFAR-10 test, median of 5 runs", f"{PRE_ACTIVATION_PAPER}, table 3"
    deepest = Published(
        errors=_error(21.1, 5.5, "ImageNet validation, one crop of 320", f"{PRE_ACTIVATION_PAPER}, table 5")
    )
    return [
        *(
            _descendant(
                f"preact-resnet{depth}", _bottleneck(depth, pre_activation=True), deepest if depth == 152 else None
            )
            for depth in _BOTTLENECK_LAYERS
        ),
        _descendant(
            "cifar-preact-resnet110",
            _small("basic", 18, shortcut="A", pre_activation=True),
            Published(
                parameters_m=1.7, parameters_source=f"{RESNET_PAPER}, table 6", errors=_error(6.37, None, tested, table)
            ),
        ),
        _descendant(
            "cifar-preact-resnet164",
            _small("bottleneck", 18, pre_activation=True),
            Published(
                parameters_m=1.7,
                parameters_source=f"{PRE_ACTIVATION_PAPER}, table 4",
                errors=_error(5.46, None, tested, table),
            ),
        ),
    ]


def _wide() -> list[CatalogEntry]:
    """WRN-N-k has N = 6n+4 layers, shortcuts counted, and stages k times as wide as the first ResNets for CIFAR."""
    printed = {(40, 4): (8.9, 4.53), (16, 8): (11.0, 4.27), (28, 10): (36.5, 4.00)}
    return [
        *(
            _descendant(
                f"wide-resnet{depth}-2",
                _bottleneck(depth, group_width=128),
                Published(
                    parameters_m=68.9,
                    parameters_source=f"{WIDE_PAPER}, table 8",
                    errors=_error(21.9, 6.03, _ONE_CROP, f"{WIDE_PAPER}, table 8"),
                )
                if depth == 50
                else None,
                builder=f"wide_resnet{depth}_2",
            )
            for depth in (50, 101)
        ),
        *(
            _descendant(
                f"cifar-wide-resnet{depth}-{factor}",
                _small(
                    "basic",
                    (depth - 4) // 6,
                    widths=(16 * factor, 32 * factor, 64 * factor),
                    stem_width=16,
                    pre_activation=True,
                ),
                Published(
                    parameters_m=parameters,
                    parameters_source=f"{WIDE_PAPER}, table 5",
                    errors=_error(error, None, "CIFAR-10 test, median of 5 runs", f"{WIDE_PAPER}, table 5"),
                    note=f"the paper counts the shortcuts' convolutions: {depth} layers",
                ),
            )
            for (depth, factor), (parameters, error) in printed.items()
        ),
    ]


def _aggregated() -> list[CatalogEntry]:
    table = f"{RESNEXT_PAPER}, table 3"
    published = {
        (50, 4): Published(
            multiply_adds_g=4.2,
            multiply_adds_source=f"{RESNEXT_PAPER}, table 1",
            parameters_m=25.0,
            parameters_source=f"{RESNEXT_PAPER}, table 1",
            errors=_error(22.2, None, _ONE_CROP, table),
        ),
        (101, 4): Published(errors=_error(21.2, None, _ONE_CROP, table)),
        (101, 8): None,
    }
    builders = ("resnext50_32x4d", "resnext101_32x8d")
    return [
        *(
            _descendant(
                f"resnext{depth}-32x{width}d",
                _bottleneck(depth, groups=32, group_width=width),
                printed,
                builder=builder if (builder := f"resnext{depth}_32x{width}d") in builders else "",
            )
            for (depth, width), printed in published.items()
        ),
        *(
            _descendant(
                f"cifar-resnext29-{groups}x64d",
                _small("bottleneck", 3, widths=(64, 128, 256), groups=groups, group_width=64),
                Published(
                    parameters_m=parameters,
                    parameters_source=f"{RESNEXT_PAPER}, table 7",
                    errors=_error(error, None, "CIFAR-10 test", f"{RESNEXT_PAPER}, table 7"),
                ),
            )
            for groups, parameters, error in ((8, 34.4, 3.65), (16, 68.1, 3.58))
        ),
    ]


def _with_tricks() -> list[CatalogEntry]:
    printed = Published(
        multiply_adds_g=4.3,
        multiply_adds_source=f"{TRICKS_PAPER}, table 5",
        errors=_error(22.84, None, _ONE_CROP, f"{TRICKS_PAPER}, table 5"),
    )
    return [
        _descendant(f"resnet{depth}-d", _bottleneck(depth, stem="deep", shortcut="D"), printed if depth == 50 else None)
        for depth in _BOTTLENECK_LAYERS
    ]


def _squeezed() -> list[CatalogEntry]:
    table = f"{SQUEEZE_PAPER}, table 2"
    printed = {50: (3.87, 23.29, 6.62), 101: (7.60, 22.38, 6.07), 152: (11.32, 21.57, 5.73)}
    return [
        *(
            _descendant(
                f"se-resnet{depth}",
                _bottleneck(depth, squeeze=16),
                Published(
                    multiply_adds_g=multiply_adds,
                    multiply_adds_source=table,
                    errors=_error(top1, top5, _ONE_CROP, table),
                    note=_V15,
                ),
            )
            for depth, (multiply_adds, top1, top5) in printed.items()
        ),
        _descendant(
            "se-resnext50-32x4d",
            _bottleneck(50, squeeze=16, groups=32, group_width=4),
            Published(multiply_adds_g=4.25, multiply_adds_source=table, errors=_error(21.10, 5.49, _ONE_CROP, table)),
        ),
    ]


_CATALOG = {
    entry.name: entry
    for entry in (
        *(_resnet(depth) for depth in DEPTHS),
        *(_resnet(depth, "v1") for depth in _BOTTLENECK_LAYERS),
        *(_plain(depth) for depth in _BASIC_LAYERS),
        _vgg(16),
        _vgg(19),
        *(_imagenet_on_cifar(depth) for depth in DEPTHS),
        *(_cifar("A", depth) for depth in CIFAR_DEPTHS),
        *(_cifar("none", depth) for depth in CIFAR_DEPTHS),
        *_pre_activation(),
        *_wide(),
        *_aggregated(),
        *_with_tricks(),
        *_squeezed(),
    )
}


def with_variant(entry: CatalogEntry, variant: Variant) -> CatalogEntry:
    """Returns a bottleneck net of the catalog in another variant; one of the paper's own has a name of its own.

    Networks without a variant are returned as they are.

    Raises:
        UsageError: The name says that the network is v1.
    """
    if entry.variant in (None, variant):
        return entry
    if entry.name.endswith("-v1"):
        raise UsageError(
            f"'{entry.name}' is the v1 network, --variant v1.5 is another", fix=f"use {entry.name.removesuffix('-v1')}"
        )
    if entry.name == f"resnet{entry.depth}":
        return by_depth(entry.depth, variant)
    if not isinstance(entry.config, ResNetConfig):
        return entry
    return replace(entry, config=replace(entry.config, variant=variant), pretrained=None)


def with_shortcut(entry: CatalogEntry, shortcut: Shortcut) -> CatalogEntry:
    """Returns a ResNet of the catalog with another of the paper's shortcut options; it has no published weights.

    Raises:
        UsageError: The network is not a ResNet.
    """
    if not isinstance(entry.config, ResNetConfig):
        raise UsageError(f"{entry.name} has no shortcuts")
    if entry.config.shortcut == shortcut:
        return entry
    return replace(entry, config=replace(entry.config, shortcut=shortcut), pretrained=None)
