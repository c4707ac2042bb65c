"""How a model wants its pictures: plain values that travel in checkpoints and in ONNX metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from resnet_onnx.models.picture_tensor import normalise
from runtimes.errors import UsageError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Channel means of ImageNet in RGB, fractions of 255; torchvision's and timm's published constants."""
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Channel standard deviations of ImageNet in RGB, fractions of 255; torchvision's and timm's published constants."""

Layout = Literal["NCHW", "NHWC"]


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """From a decoded RGB picture to the network's input.

    Attributes:
        image_size: Side of the square crop, pixels.
        resize: Length that the shorter side is scaled to before the centre crop, pixels. Equal to `image_size`
            for small pictures (CIFAR, digits).
        mean: Per-channel mean in RGB, as fractions of 255.
        std: Per-channel standard deviation in RGB, as fractions of 255.
        interpolation: Resampling filter; always antialiased.
    """

    image_size: int = 224
    resize: int = 256
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    def __post_init__(self) -> None:
        if not 1 <= self.image_size <= self.resize <= 8192:
            raise UsageError(
                f"image size {self.image_size} and resize {self.resize} must satisfy 1 ≤ image size ≤ resize ≤ 8192"
            )
        if len(self.mean) != len(self.std) or len(self.mean) != 3:
            raise UsageError(f"mean and std need three numbers each (R,G,B), not {self.mean} and {self.std}")
        if not all(np.isfinite(self.mean)) or not all(np.isfinite(self.std)) or any(s <= 0 for s in self.std):
            raise UsageError(f"mean must be finite and std positive, not {self.mean} and {self.std}")
        if self.interpolation not in ("bilinear", "bicubic"):
            raise UsageError(f"interpolation is 'bilinear' or 'bicubic', not '{self.interpolation}'")

    def normalise(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Scales bytes to the network's range.

        Args:
            pictures: uint8 [batch, height, width, channel], RGB.

        Returns:
            float32 [batch, channel, height, width], (x/255 − mean)/std.
        """
        return normalise(pictures, self.mean, self.std)

    def to_json(self) -> dict[str, Any]:
        """Returns plain values; ``from_json`` is the inverse."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Rebuilds from ``to_json``'s values.

        Raises:
            UsageError: A value is out of range, missing or unknown.
        """
        try:
            return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})
        except (TypeError, KeyError) as error:
            raise UsageError(f"this is not a preprocessing record: {dict(values)}") from error
