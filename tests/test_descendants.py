"""Descendants of the first residual networks: the functions of torchvision's and timm's modules, at published cost."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.layers import BatchNormAct2d, create_conv2d
from timm.models.resnetv2 import ResNetV2
from torch import Tensor, nn

from resnet_onnx.models import catalog, counting
from resnet_onnx.models.build import build, build_empty
from resnet_onnx.models.configs import NetworkConfig, ResNetConfig
from resnet_onnx.models.fitting import fit, recognise
from resnet_onnx.models.resnet import ResidualBlock
from resnet_onnx.models.weights_file import in_memory
from runtimes.errors import UsageError

SMALL = ResNetConfig(block="basic", layers=(2, 2), widths=(16, 32), shortcut="B", num_classes=10)


def uneven(network: nn.Module) -> nn.Module:
    """Gives a network weights of which none is zero or one, in float64."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear", generator=generator)
                if module.bias is not None:
                    module.bias.normal_(0, 0.1, generator=generator)
            elif isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.weight.uniform_(0.5, 1.5, generator=generator)
                for tensor in (module.bias, module.running_mean):
                    tensor.normal_(0, 0.1, generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
    return network.double().eval()


PAIRS = {
    "wide-resnet50-2": lambda: torchvision.models.wide_resnet50_2(weights=None),
    "resnext50-32x4d": lambda: torchvision.models.resnext50_32x4d(weights=None),
    "resnext101-32x8d": lambda: torchvision.models.resnext101_32x8d(weights=None),
    "resnext101-32x4d": lambda: timm.create_model("resnext101_32x4d"),
    "resnet50-d": lambda: timm.create_model("resnet50d"),
    "resnet101-d": lambda: timm.create_model("resnet101d"),
    "se-resnet50": lambda: timm.create_model("seresnet50"),
    "se-resnext50-32x4d": lambda: timm.create_model("seresnext50_32x4d"),
    "preact-resnet50": lambda: timm.create_model("resnetv2_50"),
    "preact-resnet101": lambda: timm.create_model("resnetv2_101"),
}


def compare(config: NetworkConfig, theirs: nn.Module, side: int) -> tuple[NetworkConfig, float]:
    """Returns the architecture that another module's tensors fit, and how far apart the functions are in float64."""
    theirs = uneven(theirs)
    fitted = fit(config, in_memory({name: t.float() for name, t in theirs.state_dict().items()}, "theirs"))
    theirs.load_state_dict({name: t.float() for name, t in theirs.state_dict().items()})  # ours are kept in float32
    ours = build_empty(fitted.config)
    ours.load_state_dict(fitted.state)
    pictures = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.inference_mode():
        expected = theirs(pictures)
        found = ours.double().eval()(pictures)
    assert expected.std() > 1e-3
    return fitted.config, float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", PAIRS)
def test_the_same_weights_give_the_libraries_own_outputs(name: str) -> None:
    config = catalog.lookup(name).config
    found, difference = compare(config, PAIRS[name](), 57)  # an odd side shows how a layer rounds
    assert found == config
    assert difference < 1e-12


def test_a_pre_activation_net_of_basic_blocks_is_timms() -> None:
    """Its first block changes the channels, so that the shortcut of both starts behind the activation."""
    config = replace(SMALL, widths=(16, 32), stem_width=8, pre_activation=True)
    theirs = ResNetV2(
        layers=[2, 2],
        channels=(16, 32),
        stem_chs=8,
        basic=True,
        bottle_ratio=1.0,
        num_classes=10,
        conv_layer=create_conv2d,
        norm_layer=BatchNormAct2d,
    )
    assert compare(config, theirs, 33)[1] < 1e-12


def test_the_comparison_can_fail() -> None:
    """The same tensors with the stride elsewhere are another function."""
    config = catalog.lookup("resnext50-32x4d").config
    assert isinstance(config, ResNetConfig)
    assert compare(replace(config, variant="v1"), PAIRS["resnext50-32x4d"](), 57)[1] > 1e-2


def test_the_shortcut_of_the_first_pre_activation_block_is_activated() -> None:
    """arXiv:1603.05027, appendix: there the activation stands before the paths part; later ones are identities."""
    network = uneven(build(replace(SMALL, pre_activation=True)))
    x = torch.randn(2, 16, 8, 8, dtype=torch.float64)
    for name, activated in (("layer1.0", True), ("layer1.1", False)):
        block: Any = network.get_submodule(name)
        active = torch.relu(block.bn1(x))
        branch = block.conv2(torch.relu(block.bn2(block.conv1(active))))
        torch.testing.assert_close(block(x), branch + (active if activated else x))


@pytest.mark.parametrize(
    ("name", "parameters", "multiply_adds_g"),
    [
        # timm's own tables of parameters in 10⁶ and multiply-adds in 10⁹ at 224 (results/model_metadata-in1k.csv).
        ("preact-resnet50", 25.55, 4.11),
        ("preact-resnet101", 44.54, 7.83),
        ("resnet50-d", 25.58, 4.35),
        ("resnet101-d", 44.57, 8.08),
        ("resnet152-d", 60.21, 11.80),
        ("se-resnet50", 28.09, 4.11),
        ("se-resnext50-32x4d", 27.56, 4.26),
        ("resnext101-32x4d", 44.18, 8.01),
        # torchvision's metadata.
        ("resnext50-32x4d", 25.03, 4.23),
        ("resnext101-32x8d", 88.79, 16.41),
        ("wide-resnet50-2", 68.88, 11.40),
        ("wide-resnet101-2", 126.89, 22.75),
        # The papers' tables.
        ("cifar-preact-resnet110", 1.7, None),
        ("cifar-preact-resnet164", 1.7, None),
        ("cifar-wide-resnet28-10", 36.5, None),
        ("cifar-wide-resnet40-4", 8.9, None),
        ("cifar-wide-resnet16-8", 11.0, None),
        ("cifar-resnext29-8x64d", 34.4, None),
        ("cifar-resnext29-16x64d", 68.1, None),
    ],
)
def test_they_cost_what_was_published(name: str, parameters: float, multiply_adds_g: float | None) -> None:
    entry = catalog.lookup(name)
    counts = counting.count(entry.config, entry.image_size)
    digits = 2 if parameters not in (1.7, 36.5, 8.9, 11.0, 34.4, 68.1) else 1
    unit = 10.0**-digits
    assert abs(counts.parameters / 1e6 - parameters) <= unit  # some sources cut, some round
    if multiply_adds_g is not None:
        assert counts.multiply_adds / 1e9 == pytest.approx(
            multiply_adds_g, rel=0.008
        )  # timm counts batch norm and biases too
    if entry.published is not None and entry.published.parameters_m is not None:
        assert abs(counts.parameters / 1e6 - entry.published.parameters_m) <= 0.1


def test_v1_of_a_squeezed_net_costs_what_its_paper_prints() -> None:
    for depth, printed in ((50, 3.87), (101, 7.60), (152, 11.32)):
        entry = catalog.with_variant(catalog.lookup(f"se-resnet{depth}"), "v1")
        assert counting.count(entry.config, 224).multiply_adds / 1e9 == pytest.approx(printed, rel=0.005)
        assert entry.published is not None
        assert entry.published.multiply_adds_g == printed


@pytest.mark.parametrize("name", ["preact-resnet50", "resnext50-32x4d", "resnet50-d", "se-resnet50", "wide-resnet50-2"])
def test_they_are_recognised_by_their_tensors(name: str) -> None:
    config = catalog.lookup(name).config
    assert recognise(build_empty(config).state_dict()) == [name]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": 32}, "bottleneck"),
        ({"block": "bottleneck", "groups": 7, "group_width": 3}, "7 groups of 3 don't divide"),
        ({"pre_activation": True, "shortcut": "none"}, "has shortcuts"),
        ({"pre_activation": "yes"}, "true or false"),
        ({"stem": "deep", "stem_width": 15}, "15 channels"),
        ({"squeeze": 17}, "leaves nothing"),
        ({"squeeze": 0}, "squeeze must be a whole number"),
    ],
)
def test_what_is_not_a_network_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        replace(SMALL, **changes)


# ---- stochastic depth ------------------------------------------------------------------------------------------------


def blocks_of(network: nn.Module) -> list[ResidualBlock]:
    return [module for module in network.modules() if isinstance(module, ResidualBlock)]


@pytest.mark.parametrize("pre_activation", [False, True])
def test_stochastic_depth_leaves_branches_out_in_training_alone(pre_activation: bool) -> None:
    network = build(replace(SMALL, pre_activation=pre_activation), stochastic_depth=0.4)
    blocks = blocks_of(network)
    assert [block.dropped for block in blocks] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    last = blocks[-1].train()
    for norm in last.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eval()
    x = torch.randn(1, 32, 4, 4).expand(4000, -1, -1, -1).contiguous()
    torch.manual_seed(0)
    with torch.no_grad():
        out = last(x)
        whole = last.eval()(x)
    left_out = (out == (torch.relu(x) if not pre_activation else x)).flatten(1).all(1)
    assert left_out.float().mean() == pytest.approx(0.4, abs=4 * math.sqrt(0.24 / 4000))
    kept: Tensor = out[~left_out][0]
    if pre_activation:  # the branch is scaled, so that the sum's mean over many steps is that of the whole network
        torch.testing.assert_close((kept - x[0]) * 0.6, whole[0] - x[0], rtol=1e-4, atol=1e-5)


def test_stochastic_depth_changes_no_weights_and_is_refused_without_shortcuts() -> None:
    plain, dropped = (
        build(SMALL, generator=torch.Generator().manual_seed(3), stochastic_depth=depth) for depth in (0.0, 0.5)
    )
    states = plain.state_dict(), dropped.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    for name in ("vgg16", "cifar-plain20"):
        with pytest.raises(UsageError, match="no shortcuts"):
            build(catalog.lookup(name).config, stochastic_depth=0.2)
