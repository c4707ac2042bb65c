"""Architectures as plain values: what a network is, without building it and without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from runtimes.errors import UsageError, UserError

Block = Literal["basic", "bottleneck"]
"""Two 3×3 convolutions, or 1×1, 3×3, 1×1 with four times the width going out (arXiv:1512.03385, figure 5)."""

Stem = Literal["imagenet", "cifar", "deep"]
"""7×7/2 convolution and 3×3/2 max-pool, or one 3×3 convolution (arXiv:1512.03385, table 1 and section 4.2); or three
3×3 convolutions, the first with stride 2, and the max-pool (arXiv:1812.01187, figure 2b)."""

Variant = Literal["v1", "v1.5"]
"""Where a bottleneck halves the picture: in its first 1×1 (the paper), or in its 3×3 (torchvision, timm, MLPerf)."""

Shortcut = Literal["A", "B", "C", "D", "none"]
"""Zero-padded, projected where shapes change, projected everywhere (arXiv:1512.03385, section 4.1); averaged and
projected where shapes change (arXiv:1812.01187, figure 2c); or a plain net."""

SHORTCUT_OPTIONS: tuple[Shortcut, ...] = ("A", "B", "C")
"""The paper's options that make a net residual, cheapest first."""

Library = Literal["timm", "torchvision"]
"""A library whose networks can be named."""

EXPANSION: Mapping[Block, int] = {"basic": 1, "bottleneck": 4}
"""Channels going out of a block, per channel of its width."""

CONVOLUTIONS: Mapping[Block, int] = {"basic": 2, "bottleneck": 3}
"""Convolutions on the main path of a block."""

_MOST_BLOCKS = 1000  # a stage of cifar-resnet1202 has 200
_MOST_CHANNELS = 65_536
_MOST_CLASSES = 1_000_000


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """A residual network, one of its descendants, or its plain counterpart.

    Attributes:
        block: Kind of block.
        layers: Blocks per stage.
        widths: Width per stage; as many as `layers`. Stage 2 and later halve the picture.
        stem: What stands before the first stage.
        variant: Where a bottleneck halves the picture; without effect on basic blocks.
        shortcut: The shortcut option, or ``"none"`` for the plain net.
        stem_width: Channels going out of the stem; None is the first stage's width.
        pre_activation: Batch norm and ReLU before each convolution of a block (arXiv:1603.05027).
        groups: Of the 3×3 convolution of a bottleneck, the paper's cardinality (arXiv:1611.05431).
        group_width: Channels of each of these groups in a stage of width 64, in proportion in others; 64, with one
            group, is the width of the stage itself, 128 twice that (arXiv:1605.07146).
        squeeze: Reduction of squeeze-and-excitation (arXiv:1709.01507); None is without.
        num_classes: Outputs.
        in_channels: Channels of the picture.
    """

    block: Block
    layers: tuple[int, ...]
    widths: tuple[int, ...] = (64, 128, 256, 512)
    stem: Stem = "imagenet"
    variant: Variant = "v1.5"
    shortcut: Shortcut = "B"
    stem_width: int | None = None
    pre_activation: bool = False
    groups: int = 1
    group_width: int = 64
    squeeze: int | None = None
    num_classes: int = 1000
    in_channels: int = 3

    def __post_init__(self) -> None:
        _check_choice("block", self.block, get_args(Block))
        _check_choice("stem", self.stem, get_args(Stem))
        _check_choice("variant", self.variant, get_args(Variant))
        _check_choice("shortcut", self.shortcut, get_args(Shortcut))
        if not self.layers or len(self.layers) != len(self.widths):
            raise UsageError(
                f"a ResNet needs one width per stage, not {len(self.layers)} stages with {len(self.widths)} widths"
            )
        for blocks in self.layers:
            _check_whole("blocks in a stage", blocks, _MOST_BLOCKS)
        for width in self.widths:
            _check_whole("width of a stage", width, _MOST_CHANNELS)
        _check_whole("num_classes", self.num_classes, _MOST_CLASSES)
        _check_whole("in_channels", self.in_channels, _MOST_CHANNELS)
        self._check_descendant()

    def _check_descendant(self) -> None:
        for name in ("stem_width", "groups", "group_width", "squeeze"):
            if (value := getattr(self, name)) is not None:
                _check_whole(name, value, _MOST_CHANNELS)
        if not isinstance(self.pre_activation, bool):
            raise UsageError(f"pre_activation is true or false, not {self.pre_activation!r}")
        if self.pre_activation and (self.shortcut == "none" or self.stem == "deep"):
            raise UsageError("a net with pre-activation has shortcuts, and one convolution for a stem")
        if self.block == "basic" and (self.groups, self.group_width) != (1, 64):
            raise UsageError("groups and their width are those of a bottleneck's 3×3 convolution")
        if self.stem == "deep" and self.first_width % 2:
            raise UsageError(f"a deep stem ends twice as wide as it begins, so not with {self.first_width} channels")
        if self.squeeze is not None and self.squeeze > EXPANSION[self.block] * min(self.widths):
            raise UsageError(f"squeeze {self.squeeze} leaves nothing of {min(self.widths)} channels")
        if any(self.inner_width(width) % self.groups or self.inner_width(width) < 1 for width in self.widths):
            raise UsageError(f"{self.groups} groups of {self.group_width} don't divide the widths {self.widths}")

    @property
    def first_width(self) -> int:
        """Channels going out of the stem."""
        return self.stem_width or self.widths[0]

    def inner_width(self, width: int) -> int:
        """Returns the channels of a bottleneck's 3×3 convolution in a stage of some width."""
        return width * self.group_width // 64 * self.groups

    @property
    def depth(self) -> int:
        """Weighted layers as the paper counts them: the first convolution, the blocks' and the classifier.

        Those of a deep stem count as one, and those of squeeze-and-excitation not, as in the names of such networks.
        """
        return 2 + CONVOLUTIONS[self.block] * sum(self.layers)

    @property
    def smallest_image(self) -> int:
        """Least side of a picture, pixels: every layer that halves it rounds up."""
        return 1


@dataclass(frozen=True, kw_only=True)
class VGGConfig:
    """VGG configuration D (16 layers) or E (19), without batch normalisation (arXiv:1409.1556, table 1).

    Attributes:
        depth: 16 or 19.
    """

    depth: Literal[16, 19]
    num_classes: int = 1000
    in_channels: int = 3

    def __post_init__(self) -> None:
        if self.depth not in (16, 19):
            raise UsageError(f"no VGG of depth {self.depth!r}: choose 16 or 19")
        _check_whole("num_classes", self.num_classes, _MOST_CLASSES)
        _check_whole("in_channels", self.in_channels, _MOST_CHANNELS)

    @property
    def smallest_image(self) -> int:
        """Least side of a picture, pixels: it is halved five times, rounding down."""
        return 32


@dataclass(frozen=True, kw_only=True)
class LibraryConfig:
    """A network whose module comes from another library's own factory (``libraries.build_module``).

    Attributes:
        name: As the factory takes it.
    """

    library: Library
    name: str
    num_classes: int = 1000
    in_channels: int = 3

    def __post_init__(self) -> None:
        _check_choice("library", self.library, get_args(Library))
        if not isinstance(self.name, str) or not self.name.isidentifier():
            raise UsageError(f"{str(self.name)[:60]!r} is not a name of a network of {self.library}")
        _check_whole("num_classes", self.num_classes, _MOST_CLASSES)
        _check_whole("in_channels", self.in_channels, _MOST_CHANNELS)

    @property
    def depth(self) -> int:
        """Zero: the library's name does not have to say how many weighted layers there are."""
        return 0

    @property
    def smallest_image(self) -> int:
        """Least side of a picture, pixels, as far as it is known."""
        return 1


NetworkConfig = ResNetConfig | VGGConfig | LibraryConfig
"""Every architecture that ``build`` can build."""

_FAMILIES: Mapping[str, type[NetworkConfig]] = {"resnet": ResNetConfig, "vgg": VGGConfig, "library": LibraryConfig}


def check_image_size(config: NetworkConfig, name: str, size: int) -> None:
    """Raises ``UsageError`` where nothing would be left of a picture with sides of `size` pixels."""
    if size < config.smallest_image:
        least = config.smallest_image
        raise UsageError(
            f"{name} halves a picture until nothing is left of {size}×{size} pixels; it needs {least}×{least}",
            fix=f"--image-size {least} or more, or another network",
        )


def with_classes(config: NetworkConfig, num_classes: int) -> NetworkConfig:
    """Returns the same architecture with another number of outputs."""
    return replace(config, num_classes=num_classes)


def config_to_json(config: NetworkConfig) -> dict[str, Any]:
    """Returns plain values, ``family`` among them; ``config_from_json`` is the inverse."""
    family = next(name for name, cls in _FAMILIES.items() if isinstance(config, cls))
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(config).items()}
    return {"family": family, **values}


def config_from_json(values: Mapping[str, Any]) -> NetworkConfig:
    """Rebuilds an architecture from ``config_to_json``'s values.

    Raises:
        UserError: A value is missing, unknown or out of range.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"an architecture record is a mapping, not {values!r}")
    family = values.get("family")
    cls = _FAMILIES.get(family) if isinstance(family, str) else None
    if cls is None:
        raise UserError(f"an architecture's family is {', '.join(map(repr, _FAMILIES))}, not {family!r}")
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items() if name != "family"
    }
    known = {field.name for field in fields(cls)}
    if unknown := sorted(map(str, set(given) - known)):
        raise UserError(f"this {family} record has unknown entries: {', '.join(unknown)}")
    try:
        return cls(**given)
    except TypeError as error:
        raise UserError(f"this is not a {family} record: {dict(values)}") from error


def _check_choice(what: str, value: object, allowed: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in allowed:
        raise UsageError(f"{what} is one of {', '.join(allowed)}, not {value!r}")


def _check_whole(what: str, value: object, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise UsageError(f"{what} must be a whole number from 1 to {most}, not {value!r}")
