"""Parameters and multiply-adds of an architecture, counted on torch's meta device: nothing is computed or typed in."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, Literal

from resnet_onnx.models.configs import NetworkConfig

if TYPE_CHECKING:
    from torch import Tensor, nn


LayerKind = Literal["convolution", "projection", "attention", "linear"]


@dataclass(frozen=True, kw_only=True)
class LayerCount:
    """One weighted layer, for one picture.

    Attributes:
        name: The module's name, the first part of its parameters' names.
        kind: Convolution on the main path, convolution on a shortcut, part of squeeze-and-excitation, or fully
            connected.
        kernel: Height and width of the kernel; (1, 1) for a fully connected layer.
        stride: Of the convolution; 1 for a fully connected layer.
        in_channels: Channels or features coming in.
        output: Shape going out without the batch, [channel, height, width] or [feature].
        parameters: Weights and biases of this layer, its batch norm not included.
        multiply_adds: Multiplications with a weight; the bias is not counted.
    """

    name: str
    kind: LayerKind
    kernel: tuple[int, int]
    stride: int
    in_channels: int
    output: tuple[int, ...]
    parameters: int
    multiply_adds: int


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What a network costs, for one picture.

    Attributes:
        parameters: Everything that training changes, batch norm's scale and shift included.
        multiply_adds: Of all convolutions (projections included) and fully connected layers, as built.
        projection_multiply_adds: Of the convolutions on shortcuts alone.
        layers: Weighted layers as the papers count them, projections and squeeze-and-excitation left out: the number
            in the name, where a deep stem does not add two.
    """

    parameters: int
    multiply_adds: int
    convolution_multiply_adds: int
    projection_multiply_adds: int
    layers: int


def layer_table(config: NetworkConfig, image_size: int) -> tuple[LayerCount, ...]:
    """Returns the weighted layers of a network in the order in which they run.

    Raises:
        UsageError: A picture with sides of `image_size` pixels is too small for the architecture.
    """
    return _measure(config, image_size)[0]


def count(config: NetworkConfig, image_size: int) -> Counts:
    """Counts parameters and multiply-adds; raises as ``layer_table``."""
    rows, parameters = _measure(config, image_size)
    linear = sum(row.multiply_adds for row in rows if row.kind == "linear")
    projection = sum(row.multiply_adds for row in rows if row.kind == "projection")
    total = sum(row.multiply_adds for row in rows)
    return Counts(
        parameters=parameters,
        multiply_adds=total,
        convolution_multiply_adds=total - linear,
        projection_multiply_adds=projection,
        layers=sum(row.kind in ("convolution", "linear") for row in rows),
    )


def printed_convention(counts: Counts, printed_g: float) -> str | None:
    """Says which way of counting gives a printed number of multiply-adds, or None where none of them does.

    The ResNet paper does not say how it counts, and no single way gives all of its table 1: 18 and 34 come out rounded
    for its zero-padded shortcuts (option A), 50 only when everything is counted and the number is cut, 101 and 152 when
    it is rounded. Its 15.3 G for VGG-16 leave the fully connected layers out, its 19.6 G for VGG-19 do not.
    `printed_g` is in 10⁹ with one decimal, as printed.
    """
    ways = {
        "all layers": counts.multiply_adds,
        "without projections": counts.multiply_adds - counts.projection_multiply_adds,
        "convolutions only": counts.convolution_multiply_adds,
    }
    tenths = round(printed_g * 10)
    for how, more in (("rounded", 50_000_000), ("cut", 0)):
        for way, multiply_adds in ways.items():
            if (multiply_adds + more) // 100_000_000 == tenths:
                return f"{way}, {how} to one decimal"
    return None


@lru_cache(maxsize=256)
def _measure(config: NetworkConfig, image_size: int) -> tuple[tuple[LayerCount, ...], int]:
    import torch
    from torch import nn

    from resnet_onnx.models.build import build_skeleton
    from runtimes.errors import UsageError

    network = build_skeleton(config).eval()
    parameters = sum(parameter.numel() for parameter in network.parameters())
    # These keep every shape and count nothing here, but take most of the time of a pass on the meta device.
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d | nn.ReLU | nn.Dropout):
                parent.add_module(name, nn.Identity())
    rows: list[LayerCount] = []
    handles = [
        module.register_forward_hook(lambda module, inputs, output, name=name: rows.append(_row(name, module, output)))
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    try:
        with torch.no_grad():
            network(torch.empty(1, config.in_channels, image_size, image_size, device="meta"))
    except RuntimeError as error:
        raise UsageError(f"a picture of {image_size}×{image_size} is too small for this network: {error}") from error
    finally:
        for handle in handles:
            handle.remove()
    return tuple(rows), parameters


def _row(name: str, layer: nn.Conv2d | nn.Linear, output: Tensor) -> LayerCount:
    """Multiply-adds are outputs × the weights that each is made from: kernel area × input channels per group."""
    from torch import nn

    shape = tuple(output.shape[1:])
    kind: LayerKind = "linear"
    kernel, stride = (1, 1), 1
    if isinstance(layer, nn.Conv2d):
        kind = "projection" if "downsample" in name else "attention" if ".se." in name else "convolution"
        kernel, stride = (layer.kernel_size[0], layer.kernel_size[1]), layer.stride[0]
    return LayerCount(
        name=name,
        kind=kind,
        kernel=kernel,
        stride=stride,
        in_channels=layer.in_channels if isinstance(layer, nn.Conv2d) else layer.in_features,
        output=shape,
        parameters=sum(parameter.numel() for parameter in layer.parameters()),
        multiply_adds=prod(shape) * layer.weight[0].numel(),
    )
