"""The catalog: names, architectures and printed figures, without torch."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest

from resnet_onnx.models import catalog
from resnet_onnx.models.configs import (
    ResNetConfig,
    VGGConfig,
    config_from_json,
    config_to_json,
    with_classes,
)
from resnet_onnx.models.network import Network
from resnet_onnx.models.preprocessing import Preprocessing
from runtimes.errors import UsageError, UserError


def test_importing_the_catalog_loads_no_torch() -> None:
    code = (
        "import sys, resnet_onnx.models.catalog, resnet_onnx.models.network, resnet_onnx.models.counting;"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_names_are_those_of_the_contract() -> None:
    cifar = [f"cifar-{kind}{depth}" for kind in ("resnet", "plain") for depth in (20, 32, 44, 56, 110)]
    assert catalog.names() == [
        *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
        *("resnet50-v1", "resnet101-v1", "resnet152-v1", "plain18", "plain34", "vgg16", "vgg19"),
        *(f"resnet{depth}-cifar" for depth in (18, 34, 50, 101, 152)),
        *cifar,
        *("preact-resnet50", "preact-resnet101", "preact-resnet152"),
        *("cifar-preact-resnet110", "cifar-preact-resnet164"),
        *("wide-resnet50-2", "wide-resnet101-2"),
        *("cifar-wide-resnet40-4", "cifar-wide-resnet16-8", "cifar-wide-resnet28-10"),
        *("resnext50-32x4d", "resnext101-32x4d", "resnext101-32x8d"),
        *("cifar-resnext29-8x64d", "cifar-resnext29-16x64d"),
        *("resnet50-d", "resnet101-d", "resnet152-d"),
        *("se-resnet50", "se-resnet101", "se-resnet152", "se-resnext50-32x4d"),
    ]


@pytest.mark.parametrize("name", catalog.names())
def test_every_entry_is_consistent_with_its_name(name: str) -> None:
    entry = catalog.lookup(name)
    assert entry.name == name
    (depth,) = re.findall(r"(?:net|plain|vgg|resnext)(\d+)", name)
    assert entry.depth == int(depth) - 2 * name.startswith("cifar-wide")  # whose paper counts the two projections too
    assert entry.image_size == (32 if "cifar" in name else 224)
    assert entry.config.num_classes == (10 if "cifar" in name else 1000)
    assert entry.preprocessing.resize == (32 if "cifar" in name else 256)
    if isinstance(entry.config, ResNetConfig):
        assert (entry.config.shortcut == "none") == ("plain" in name)


def test_resnet50_strides_in_the_3x3_and_v1_in_the_1x1() -> None:
    assert catalog.lookup("resnet50").variant == "v1.5"
    assert catalog.lookup("resnet50-v1").variant == "v1"
    assert catalog.lookup("resnet34").variant is None
    assert catalog.by_depth(101).name == "resnet101"
    assert catalog.by_depth(101, "v1").name == "resnet101-v1"
    assert catalog.by_depth(18, "v1").name == "resnet18"


def test_cifar_nets_of_any_depth_6n_plus_2() -> None:
    entry = catalog.lookup("cifar-resnet1202")
    assert isinstance(entry.config, ResNetConfig)
    assert entry.config.layers == (200, 200, 200)
    assert entry.published is not None
    assert entry.published.errors[0].top1_percent == 7.93
    assert catalog.lookup("cifar-plain8").config == replace(catalog.lookup("cifar-plain20").config, layers=(1, 1, 1))


@pytest.mark.parametrize(
    ("name", "message", "fix"),
    [
        ("resnet51", "no ResNet of depth 51: choose 18, 34, 50, 101 or 152", None),
        ("ResNet50", "did you mean resnet50?", "resnet-onnx models"),
        ("cifar_resnet20", "did you mean cifar-resnet20?", "resnet-onnx models"),
        ("cifar-resnet21", "6n+2", "cifar-resnet20"),
        ("cifar-plain2", "6n+2", "cifar-plain8"),
        ("cifar-resnet999998", "6n+2", "cifar-resnet6002"),
        ("resnet34-v1", "no v1 and v1.5", "use resnet34"),
        ("resnet50-v1.5", "v1.5 is the default", "use resnet50"),
        ("vgg11", "vgg16", "resnet-onnx models"),
        ("", "no network is named ''", "resnet-onnx models"),
    ],
)
def test_an_unknown_name_is_told_with_the_next_step(name: str, message: str, fix: str | None) -> None:
    with pytest.raises(UsageError) as caught:
        catalog.lookup(name)
    assert message in caught.value.message
    assert caught.value.exit_code == 2
    assert fix is None or fix in (caught.value.fix or "")


def test_a_depth_that_does_not_exist_gives_the_promised_message() -> None:
    with pytest.raises(UsageError) as caught:
        catalog.by_depth(77)
    assert caught.value.message == (
        "no ResNet of depth 77: choose 18, 34, 50, 101 or 152 (CIFAR nets: --model cifar-resnet20, 32, 44, 56, 110)"
    )
    with pytest.raises(UsageError, match=r"v1 or v1\.5"):
        catalog.by_depth(50, "v2")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "multiply_adds_g", "top1", "top5", "table"),
    [
        ("resnet18", 1.8, 27.88, None, "table 2"),
        ("resnet34", 3.6, 24.52, 7.46, "table 3"),
        ("resnet50-v1", 3.8, 22.85, 6.71, "table 3"),
        ("resnet101-v1", 7.6, 21.75, 6.05, "table 3"),
        ("resnet152-v1", 11.3, 21.43, 5.71, "table 3"),
        ("plain34", 3.6, 28.54, 10.02, "tables 2 and 3"),
        ("plain18", None, 27.94, None, "table 2"),
        ("vgg16", 15.3, 25.6, 8.1, "table 3"),
        ("vgg19", 19.6, 25.5, 8.0, "table 3"),
        ("cifar-resnet110", None, 6.43, None, "table 6"),
    ],
)
def test_printed_figures_and_their_source(
    name: str, multiply_adds_g: float | None, top1: float, top5: float | None, table: str
) -> None:
    published = catalog.lookup(name).published
    assert published is not None
    assert published.multiply_adds_g == multiply_adds_g
    first = published.errors[0]
    assert (first.top1_percent, first.top5_percent) == (top1, top5)
    assert first.source.endswith(table)


def test_figures_printed_for_v1_are_marked_on_v15() -> None:
    published = catalog.lookup("resnet50").published
    assert published is not None
    assert "resnet50-v1" in published.note


@pytest.mark.parametrize("name", [name for name in catalog.names() if catalog.lookup(name).pretrained])
def test_pretrained_weights_are_torchvisions_own_with_our_preprocessing(name: str) -> None:
    from torchvision.models import get_weight

    entry = catalog.lookup(name)
    assert entry.pretrained is not None
    weights = get_weight(entry.pretrained.enum_name)
    metrics = weights.meta["_metrics"]["ImageNet-1K"]
    assert (metrics["acc@1"], metrics["acc@5"]) == (entry.pretrained.top1_percent, entry.pretrained.top5_percent)
    transforms = weights.transforms()
    assert (transforms.crop_size, transforms.resize_size) == ([entry.image_size], [entry.preprocessing.resize])
    assert tuple(transforms.mean) == entry.preprocessing.mean
    assert tuple(transforms.std) == entry.preprocessing.std
    assert transforms.interpolation.value == entry.preprocessing.interpolation


def test_published_figures_as_json() -> None:
    record = catalog.lookup("resnet50-v1").published_json()
    assert record is not None
    assert record["multiply_adds_g"] == 3.8
    assert record["multiply_adds_source"] == "arXiv:1512.03385, table 1"
    assert record["torchvision"] is None
    modern = catalog.lookup("resnet50").published_json()
    assert modern is not None
    assert modern["torchvision"] == {
        "weights": "ResNet50_Weights.IMAGENET1K_V1",
        "top1_percent": 76.13,
        "top5_percent": 92.862,
    }
    assert catalog.lookup("cifar-plain20").published_json() is None


def test_another_shortcut_option_has_no_published_weights() -> None:
    entry = catalog.with_shortcut(catalog.lookup("resnet34"), "C")
    assert isinstance(entry.config, ResNetConfig)
    assert entry.config.shortcut == "C"
    assert entry.pretrained is None
    assert catalog.with_shortcut(catalog.lookup("resnet34"), "B") == catalog.lookup("resnet34")
    with pytest.raises(UsageError, match="no shortcuts"):
        catalog.with_shortcut(catalog.lookup("vgg16"), "A")


# ---- architectures as values ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*catalog.names(), "cifar-resnet14"])
def test_an_architecture_survives_json(name: str) -> None:
    config = with_classes(catalog.lookup(name).config, 7)
    record = config_to_json(config)
    assert record["family"] in ("resnet", "vgg")
    assert config_from_json(record) == config
    assert pickle.loads(pickle.dumps(config)) == config
    assert hash(config) == hash(config_from_json(record))


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"family": "densenet"},
        {"family": ["resnet"]},
        {"family": "resnet"},
        {"family": "resnet", "block": "basic", "layers": [2, 2, 2]},
        {"family": "resnet", "block": "basic", "layers": []},
        {"family": "resnet", "block": "basic", "layers": [2, 2, 2, 0]},
        {"family": "resnet", "block": "basic", "layers": [2, 2, 2, 10**9]},
        {"family": "resnet", "block": "basic", "layers": [2, 2, 2, "2"]},
        {"family": "resnet", "block": "basic", "layers": 4},
        {"family": "resnet", "block": "basic", "layers": [2, 2, 2, 2], "widths": [64, 128, 256, 10**9]},
        {"family": "resnet", "block": "wide", "layers": [2, 2, 2, 2]},
        {"family": "resnet", "block": "basic", "layers": [2, 2, 2, 2], "shortcut": "E"},
        {"family": "resnet", "block": "basic", "layers": [2, 2, 2, 2], "variant": 1.5},
        {"family": "resnet", "block": "basic", "layers": [2, 2, 2, 2], "num_classes": 0},
        {"family": "resnet", "block": "basic", "layers": [2, 2, 2, 2], "num_classes": True},
        {"family": "resnet", "block": "basic", "layers": [2, 2, 2, 2], "colour": "red"},
        {"family": "library", "library": "keras", "name": "resnet50"},
        {"family": "library", "library": "timm", "name": "hf-hub:someone/model"},
        {"family": "vgg", "depth": 11},
        {"family": "vgg", "depth": 16, "layers": [1]},
        {"family": "vgg", "depth": 16, "num_classes": 10**12},
        ["family", "vgg"],
    ],
)
def test_nonsense_is_no_architecture(record: dict[str, object]) -> None:
    with pytest.raises(UserError):
        config_from_json(record)


def test_architectures_cannot_be_changed() -> None:
    config = VGGConfig(depth=16)
    with pytest.raises(FrozenInstanceError):
        config.depth = 19  # type: ignore[misc]


# ---- a network as a value -------------------------------------------------------------------------------------------


def _network(labels: tuple[str, ...] | None = tuple("abcdefghij")) -> Network:
    return Network(
        name="cifar-resnet8",
        config=catalog.lookup("cifar-resnet8").config,
        preprocessing=Preprocessing(image_size=32, resize=32),
        labels=labels,
        weights=Path("weights.safetensors"),
        weights_sha256="0" * 64,
        weights_source="random (seed 0)",
        trained=False,
    )


@pytest.mark.parametrize("labels", [None, tuple("abcdefghij")])
def test_a_network_survives_json_and_pickle(labels: tuple[str, ...] | None) -> None:
    network = _network(labels)
    record = network.to_json()
    assert "weights" not in record
    assert Network.from_json(record, weights=network.weights) == network
    assert pickle.loads(pickle.dumps(network)) == network


def test_labels_must_be_as_many_as_outputs() -> None:
    with pytest.raises(UserError, match=r"10 outputs, but 2 labels"):
        _network(("cat", "dog"))


@pytest.mark.parametrize("missing", ["name", "config", "preprocessing", "labels", "trained", "weights_sha256"])
def test_an_incomplete_network_record_is_refused(missing: str) -> None:
    record = _network().to_json()
    del record[missing]
    with pytest.raises(UserError, match=missing):
        Network.from_json(record, weights=Path("x"))
