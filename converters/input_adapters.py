"""What stands around a network: normalisation as part of the graph, and casts into its precision."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn


class Uint8Input(nn.Module):
    """Puts (x/255 − mean)/std in front of a network, so that a deployment can't get mean or channel order wrong.

    Args:
        module: From float [batch, channel, height, width] to anything.
        mean: Per channel, as fractions of 255.
        std: Per channel, as fractions of 255.
        layout: Of the bytes that come in.
    """

    scale: torch.Tensor
    offset: torch.Tensor

    def __init__(
        self, module: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], layout: Literal["NCHW", "NHWC"]
    ) -> None:
        super().__init__()
        self.module = module
        self.layout = layout
        wide_mean, wide_std = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
        dtype = next(module.parameters()).dtype
        self.register_buffer("scale", (1 / (255 * wide_std)).to(dtype).view(1, -1, 1, 1))
        self.register_buffer("offset", (-wide_mean / wide_std).to(dtype).view(1, -1, 1, 1))

    def forward(self, pictures: torch.Tensor) -> Any:
        """Takes uint8 [batch, height, width, channel] or [batch, channel, height, width], by the layout."""
        if self.layout == "NHWC":
            pictures = pictures.permute(0, 3, 1, 2)
        return self.module(pictures.to(self.scale.dtype) * self.scale + self.offset)


class CastInside(nn.Module):
    """Takes inputs of any float type into a network of another one; bytes go in as they are.

    Args:
        module: From [batch, channel, height, width] or [batch, height, width, channel] to one tensor.
        float32_out: Whether its output becomes float32, or stays what the network computes in.
    """

    def __init__(self, module: nn.Module, *, float32_out: bool) -> None:
        super().__init__()
        self.module = module
        self.float32_out = float32_out
        self.dtype = next(module.parameters()).dtype

    def forward(self, pictures: torch.Tensor) -> Any:
        """Takes pictures in the network's layout."""
        outputs = self.module(pictures.to(self.dtype) if pictures.is_floating_point() else pictures)
        return outputs.float() if self.float32_out else outputs
