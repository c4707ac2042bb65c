"""The networks themselves: shapes, shortcuts, initialisation and what they cost."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from resnet_onnx.models import catalog, counting
from resnet_onnx.models.build import build, build_empty, build_skeleton
from resnet_onnx.models.configs import ResNetConfig, Shortcut
from resnet_onnx.models.resnet import ZeroPadShortcut
from runtimes.errors import UsageError

SMALL = catalog.lookup("cifar-resnet8").config
assert isinstance(SMALL, ResNetConfig)


def _input_and_output_of(network: nn.Module, names: list[str], pictures: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def hook(name: str) -> Any:
        return lambda module, inputs, output: seen.__setitem__(name, (inputs[0].clone(), output.clone()))

    for name in names:
        network.get_submodule(name).register_forward_hook(hook(name))
    with torch.inference_mode():
        network(pictures)
    return seen


@pytest.mark.parametrize("name", catalog.names())
def test_every_network_maps_its_pictures_to_logits(name: str) -> None:
    entry = catalog.lookup(name)
    network = build_skeleton(entry.config).eval()
    pictures = torch.empty(3, 3, entry.image_size, entry.image_size, device="meta")
    assert network(pictures).shape == (3, entry.config.num_classes)


def test_stage_shapes_are_those_of_table_1() -> None:
    network = build_skeleton(catalog.lookup("resnet50").config).eval()
    shapes: dict[str, torch.Size] = {}
    for name in ("conv1", "maxpool", "layer1", "layer2", "layer3", "layer4"):
        network.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: shapes.__setitem__(name, output.shape[1:])
        )
    network(torch.empty(1, 3, 224, 224, device="meta"))
    assert {name: tuple(shape) for name, shape in shapes.items()} == {
        "conv1": (64, 112, 112),
        "maxpool": (64, 56, 56),
        "layer1": (256, 56, 56),
        "layer2": (512, 28, 28),
        "layer3": (1024, 14, 14),
        "layer4": (2048, 7, 7),
    }


@pytest.mark.parametrize(("name", "first", "second"), [("resnet50-v1", 2, 1), ("resnet50", 1, 2)])
def test_where_a_bottleneck_strides(name: str, first: int, second: int) -> None:
    network = build_skeleton(catalog.lookup(name).config)
    for stage in ("layer2", "layer3", "layer4"):
        assert network.get_submodule(f"{stage}.0.conv1").stride == (first, first)
        assert network.get_submodule(f"{stage}.0.conv2").stride == (second, second)
        assert network.get_submodule(f"{stage}.1.conv2").stride == (1, 1)
    assert network.get_submodule("layer1.0.conv1").stride == (1, 1)


# ---- shortcuts ------------------------------------------------------------------------------------------------------


def test_option_a_takes_every_second_pixel_and_splits_the_zero_channels() -> None:
    x = torch.arange(2 * 4 * 6 * 6, dtype=torch.float32).reshape(2, 4, 6, 6)
    y = ZeroPadShortcut(4, 8, 2)(x)
    assert y.shape == (2, 8, 3, 3)
    assert torch.equal(y[:, 2:6], x[:, :, ::2, ::2])
    assert not y[:, :2].any()
    assert not y[:, 6:].any()
    odd = ZeroPadShortcut(4, 7, 1)(x)
    assert torch.equal(odd[:, 1:5], x)


def _projections(config: ResNetConfig) -> list[str]:
    return [
        name
        for name, module in build_skeleton(config).named_modules()
        if name.endswith(".downsample.0") and isinstance(module, nn.Conv2d)
    ]


@pytest.mark.parametrize(
    ("name", "option", "projections"),
    [
        ("resnet34", "A", 0),
        ("resnet34", "B", 3),
        ("resnet34", "C", 16),
        ("resnet34", "none", 0),
        ("resnet50", "A", 0),
        ("resnet50", "B", 4),
        ("resnet50", "C", 16),
        ("cifar-resnet20", "B", 2),
        ("cifar-resnet20", "C", 9),
    ],
)
def test_how_many_shortcuts_are_projections(name: str, option: Shortcut, projections: int) -> None:
    config = catalog.lookup(name).config
    assert isinstance(config, ResNetConfig)
    config = replace(config, shortcut=option)
    assert len(_projections(config)) == projections
    assert build_skeleton(config)(torch.empty(2, 3, 64, 64, device="meta")).shape == (2, config.num_classes)


@pytest.mark.parametrize("block", ["layer1.1", "layer2.0"])
def test_a_residual_block_adds_its_shortcut_and_a_plain_one_does_not(block: str) -> None:
    torch.manual_seed(0)
    residual = build(catalog.lookup("cifar-resnet14").config).eval()
    plain = build(catalog.lookup("cifar-plain14").config).eval()
    plain.load_state_dict(residual.state_dict())  # the same tensors: option A has no parameters
    last = f"{block}.bn2"
    for network, adds in ((residual, True), (plain, False)):
        seen = _input_and_output_of(network, [block, last], torch.randn(2, 3, 32, 32))
        x, out = seen[block]
        before = seen[last][1]
        shortcut = network.get_submodule(block).downsample
        expected = torch.relu(before + shortcut(x)) if adds else torch.relu(before)
        assert torch.equal(out, expected)
        assert (shortcut is None) is not adds


@pytest.mark.parametrize("config", [SMALL, replace(SMALL, block="bottleneck", shortcut="B", variant="v1")])
def test_gradients_reach_every_parameter(config: ResNetConfig) -> None:
    torch.manual_seed(0)
    network = build(config)
    network(torch.randn(4, 3, 32, 32)).square().sum().backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


# ---- initialisation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "cifar-resnet20", "plain18"])
def test_weights_start_as_he_et_al_say(name: str) -> None:
    network = build(catalog.lookup(name).config, generator=torch.Generator().manual_seed(3))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            weight = module.weight.detach()
            std = math.sqrt(2 / weight[0].numel())
            # Five standard errors of a standard deviation estimated from so many draws.
            assert abs(weight.std().item() / std - 1) < 5 / math.sqrt(2 * weight.numel())
            assert abs(weight.mean().item()) < 5 * std / math.sqrt(weight.numel())
        elif isinstance(module, nn.BatchNorm2d):
            assert module.weight.detach().eq(1).all()
            assert module.bias.detach().eq(0).all()
            assert module.running_mean is not None
            assert module.running_var is not None
            assert module.running_mean.eq(0).all()
            assert module.running_var.eq(1).all()
        elif isinstance(module, nn.Linear):
            assert module.weight.detach().std().item() == pytest.approx(1 / math.sqrt(module.in_features), rel=0.1)
            assert module.bias.detach().eq(0).all()


def test_building_is_seeded_and_needs_no_global_state() -> None:
    before = torch.get_rng_state()
    first = build(SMALL, generator=torch.Generator().manual_seed(1)).state_dict()
    again = build(SMALL, generator=torch.Generator().manual_seed(1)).state_dict()
    other = build(SMALL, generator=torch.Generator().manual_seed(2)).state_dict()
    build_empty(SMALL)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])
    torch.manual_seed(5)
    from_global = build(SMALL).state_dict()
    torch.manual_seed(5)
    assert torch.equal(from_global["conv1.weight"], build(SMALL).state_dict()["conv1.weight"])


# ---- counting -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters", "multiply_adds"),
    [
        ("resnet18", 11_689_512, 1_814_073_344),
        ("resnet34", 21_797_672, 3_663_761_408),
        ("resnet50", 25_557_032, 4_089_184_256),
        ("resnet101", 44_549_160, 7_801_405_440),
        ("resnet152", 60_192_808, 11_513_626_624),
        ("resnet50-v1", 25_557_032, 3_857_973_248),
        ("resnet101-v1", 44_549_160, 7_570_194_432),
        ("resnet152-v1", 60_192_808, 11_282_415_616),
        ("vgg16", 138_357_544, 15_470_264_320),
        ("vgg19", 143_667_240, 19_632_062_464),
    ],
)
def test_counted_parameters_and_multiply_adds(name: str, parameters: int, multiply_adds: int) -> None:
    counts = counting.count(catalog.lookup(name).config, 224)
    assert (counts.parameters, counts.multiply_adds) == (parameters, multiply_adds)


@pytest.mark.parametrize("name", [name for name in catalog.names() if catalog.lookup(name).pretrained])
def test_counts_equal_torchvisions(name: str) -> None:
    from torchvision.models import get_weight

    pretrained = catalog.lookup(name).pretrained
    assert pretrained is not None
    meta = get_weight(pretrained.enum_name).meta
    counts = counting.count(catalog.lookup(name).config, 224)
    assert counts.parameters == meta["num_params"]
    assert round(counts.multiply_adds / 1e9, 3) == meta["_ops"]


@pytest.mark.parametrize("name", catalog.names())
def test_counted_layers_are_the_number_in_the_name(name: str) -> None:
    entry = catalog.lookup(name)
    deep_stem = isinstance(entry.config, ResNetConfig) and entry.config.stem == "deep"
    assert counting.count(entry.config, entry.image_size).layers == entry.depth + 2 * deep_stem


@pytest.mark.parametrize(
    ("name", "convention"),
    [
        ("resnet18", "all layers, rounded to one decimal"),
        ("resnet34", "without projections, rounded to one decimal"),
        ("resnet50-v1", "all layers, cut to one decimal"),
        ("resnet101-v1", "all layers, rounded to one decimal"),
        ("resnet152-v1", "all layers, rounded to one decimal"),
        ("plain34", "all layers, rounded to one decimal"),
        ("vgg16", "convolutions only, rounded to one decimal"),
        ("vgg19", "all layers, rounded to one decimal"),
        ("resnext50-32x4d", "all layers, rounded to one decimal"),
        ("resnet50-d", "all layers, rounded to one decimal"),
        ("resnet50", None),
        ("resnet101", None),
        ("resnet152", None),
    ],
)
def test_which_way_of_counting_gives_the_papers_figure(name: str, convention: str | None) -> None:
    entry = catalog.lookup(name)
    assert entry.published is not None
    assert entry.published.multiply_adds_g is not None
    counts = counting.count(entry.config, 224)
    assert counting.printed_convention(counts, entry.published.multiply_adds_g) == convention


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110, 1202])
def test_cifar_parameters_are_those_of_table_6(depth: int) -> None:
    entry = catalog.lookup(f"cifar-resnet{depth}")
    assert entry.published is not None
    printed = entry.published.parameters_m
    assert printed is not None
    counted = counting.count(entry.config, 32).parameters / 1e6
    assert round(counted, 2 if printed < 1 else 1) == printed


def test_the_layer_table_adds_up() -> None:
    entry = catalog.lookup("resnet50-v1")
    rows = counting.layer_table(entry.config, 224)
    counts = counting.count(entry.config, 224)
    assert len(rows) == 54
    assert sum(row.multiply_adds for row in rows) == counts.multiply_adds
    assert counts.convolution_multiply_adds == counts.multiply_adds - 2048 * 1000
    by_name = {row.name: row for row in rows}
    stem = by_name["conv1"]
    assert (stem.kernel, stem.stride, stem.in_channels, stem.output) == ((7, 7), 2, 3, (64, 112, 112))
    assert stem.multiply_adds == 7 * 7 * 3 * 64 * 112 * 112
    assert by_name["layer2.0.downsample.0"].kind == "projection"
    assert by_name["layer2.0.downsample.0"].multiply_adds == 256 * 512 * 28 * 28
    assert (by_name["fc"].kind, by_name["fc"].parameters) == ("linear", 2_049_000)
    assert rows[0].name == "conv1"
    assert rows[-1].name == "fc"


def test_multiply_adds_follow_the_picture() -> None:
    config = catalog.lookup("resnet18").config
    small, large = counting.count(config, 224), counting.count(config, 448)
    assert large.convolution_multiply_adds == 4 * small.convolution_multiply_adds
    assert large.parameters == small.parameters


def test_a_picture_too_small_for_the_network_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"31×31 is too small"):
        counting.count(catalog.lookup("vgg16").config, 31)


class Operations(TorchDispatchMode):
    """Notes the name and the device of every tensor operation."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.devices: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.names.append(func.overloadpacket.__name__)
        if isinstance(found, Tensor):
            self.devices.add(found.device.type)
        return found


@pytest.mark.parametrize("name", catalog.names())
def test_counting_computes_nothing_and_happens_once(name: str) -> None:
    entry = catalog.lookup(name)
    counting._measure.cache_clear()
    with Operations() as operations:
        counts = counting.count(entry.config, entry.image_size)
    assert operations.devices == {"meta"}
    assert operations.names.count("convolution") == sum(
        row.kind != "linear" for row in counting.layer_table(entry.config, entry.image_size)
    )
    assert not [each for each in operations.names if "norm" in each or "relu" in each]  # most of the time of a pass
    with Operations() as operations:
        assert counting.count(entry.config, entry.image_size) == counts
    assert operations.names == []
