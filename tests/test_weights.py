"""Weights: reading them safely, fitting them, drawing them, downloading them."""

from __future__ import annotations

import argparse
import collections
import contextlib
import hashlib
import io
import json
import pickle
import random
import resource
import socket
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image
from support.servers import Server, refusing_url, running_server
from torch import Tensor, nn

from resnet_onnx.models import catalog
from resnet_onnx.models.build import build, build_empty
from resnet_onnx.models.configs import NetworkConfig, ResNetConfig, with_classes
from resnet_onnx.models.downloads import imagenet_weights
from resnet_onnx.models.fitting import fit, recognise
from resnet_onnx.models.network import Network
from resnet_onnx.models.preprocessing import Preprocessing
from resnet_onnx.models.stated_preprocessing import stated_preprocessing
from resnet_onnx.models.weights import load_network, random_state_dict, store_state_dict
from resnet_onnx.models.weights_file import WeightsFile, in_memory, read_weights_file
from runtimes import files
from runtimes.errors import BadWeights, NetworkUnavailable, UsageError

SMALL = catalog.lookup("cifar-resnet8").config


def fitted(config: NetworkConfig, state: dict[str, Tensor], *, origin: str) -> tuple[NetworkConfig, dict[str, Tensor]]:
    found = fit(config, in_memory(state, origin))
    return found.config, found.state


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that holds them itself."""
    (state,) = read_weights_file(path).entries.values()
    return state


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """These nets are small: two threads on a busy machine spend their time waiting for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def small_state() -> dict[str, Tensor]:
    """A state dict of a small CIFAR net with statistics that are not all zero and one."""
    return _filled(build(SMALL, generator=torch.Generator().manual_seed(0))).state_dict()


def _filled(network: nn.Module, seed: int = 0) -> nn.Module:
    """Gives a module made without initialisation weights that keep activations finite, and uneven batch norms."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear", generator=generator)
                if module.bias is not None:
                    module.bias.normal_(0, 0.1, generator=generator)
            elif isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.1, generator=generator)
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.1, generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
                assert module.num_batches_tracked is not None
                module.num_batches_tracked.zero_()
    return network.eval()


def _relative_rmse(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).double().square().mean().sqrt() / theirs.double().square().mean().sqrt())


def _loaded(config: NetworkConfig, state: dict[str, Tensor]) -> nn.Module:
    network = build_empty(config)
    network.load_state_dict(state, strict=True)
    return network.eval()


# ---- other people's networks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "vgg16", "vgg19"])
def test_torchvision_weights_give_torchvisions_outputs(name: str) -> None:
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)(weights=None)
    theirs = _filled(theirs.to_empty(device="cpu"))
    config, state = fitted(catalog.lookup(name).config, theirs.state_dict(), origin="torchvision")
    assert config == catalog.lookup(name).config
    pictures = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = theirs(pictures)
        assert expected.std() > 1e-3
        assert _relative_rmse(_loaded(config, state)(pictures), expected) <= 1e-6


@pytest.mark.parametrize(
    ("name", "side", "bound"),
    [
        ("resnet18", 64, 1e-6),
        ("resnet50", 64, 1e-6),
        # timm's VGG pools differently at other sizes, and adds up 25,088 products in a convolution's order.
        ("vgg16", 224, 2e-6),
    ],
)
def test_timm_weights_give_timms_outputs(name: str, side: int, bound: float) -> None:
    with torch.device("meta"):
        theirs = timm.create_model(name, pretrained=False)
    theirs = _filled(theirs.to_empty(device="cpu"))
    config, state = fitted(catalog.lookup(name).config, theirs.state_dict(), origin="timm")
    pictures = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = theirs(pictures)
        assert expected.std() > 1e-3
        assert _relative_rmse(_loaded(config, state)(pictures), expected) <= bound


def test_v1_differs_from_torchvision() -> None:
    """The comparison above can fail: the same tensors in the paper's variant are another function."""
    with torch.device("meta"):
        theirs = torchvision.models.resnet50(weights=None)
    theirs = _filled(theirs.to_empty(device="cpu"))
    config, state = fitted(catalog.lookup("resnet50-v1").config, theirs.state_dict(), origin="torchvision")
    pictures = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert _relative_rmse(_loaded(config, state)(pictures), theirs(pictures)) > 1e-2


@pytest.mark.parametrize(("depth", "correct"), [(20, 795), (32, 808)])
def test_published_cifar_weights_keep_their_accuracy(shared_data: Path, depth: int, correct: int) -> None:
    """Every tenth test picture; all 10,000 give 81.03 % and 82.56 %."""
    state = read(shared_data / f"cifar-resnet{depth}.th")
    config, state = fitted(catalog.lookup(f"cifar-resnet{depth}").config, state, origin="akamaster")
    network = _loaded(config, state)
    with zipfile.ZipFile(shared_data / "cifar10-jpeg.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.startswith("test/") and name.endswith(".jpg"))[::10]
        pictures = np.stack([np.asarray(Image.open(io.BytesIO(archive.read(name)))) for name in names])
    classes = sorted({name.split("/")[1] for name in names})
    labels = np.array([classes.index(name.split("/")[1]) for name in names])
    normalised = torch.from_numpy(Preprocessing(image_size=32, resize=32).normalise(pictures))
    with torch.inference_mode():
        predicted = torch.cat([network(batch).argmax(1) for batch in normalised.split(250)]).numpy()
    assert abs(int((predicted == labels).sum()) - correct) <= 1  # other decoders and kernels may flip one


# ---- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".pth", ".th", ".pt", ".safetensors", ".bin"])
@pytest.mark.parametrize("legacy", [False, True])
def test_every_kind_of_file_is_read(tmp_path: Path, small_state: dict[str, Tensor], ending: str, legacy: bool) -> None:
    path = tmp_path / f"weights{ending}"
    if ending == ".safetensors":
        safetensors.torch.save_file(small_state, path)
    else:
        torch.save(small_state, path, _use_new_zipfile_serialization=not legacy)
    found = read(path)
    assert found.keys() == small_state.keys()
    assert all(torch.equal(found[name], small_state[name]) for name in found)


@pytest.mark.parametrize(
    "path", ["state_dict", "model", "network", "weights", "any.thing.at all", "model_state.params", "ema_model"]
)
def test_a_network_is_found_under_whatever_keys(tmp_path: Path, small_state: dict[str, Tensor], path: str) -> None:
    inner: Any = {f"_orig_mod.student.{name}": tensor for name, tensor in small_state.items()}
    for key in reversed(path.split(".")):
        inner = {key: inner}
    checkpoint = {
        "epoch": 3,
        "rng": torch.get_rng_state(),
        "loss": torch.tensor(0.5),
        "args": argparse.Namespace(lr=0.1, out=Path("runs")),
        "best": np.float64(91.2),
        "optimizer": {"state": collections.defaultdict(dict, {0: {"momentum_buffer": torch.ones(2)}})},
        **inner,
    }
    torch.save(checkpoint, tmp_path / "checkpoint.pth")
    found = fit(SMALL, read_weights_file(tmp_path / "checkpoint.pth"))
    assert all(torch.equal(found.state[name], small_state[name]) for name in small_state)
    assert found.left_out == ("rng", "loss", "optimizer (1 tensor)")
    assert found.entry == ""


def test_of_raw_and_averaged_weights_the_user_names_one(tmp_path: Path, small_state: dict[str, Tensor]) -> None:
    averaged = {f"module.{name}": torch.ones_like(tensor) for name, tensor in small_state.items()}
    torch.save({"model_ema": {**averaged, "n_averaged": torch.tensor(7)}, "model": small_state}, tmp_path / "both.pth")
    both = read_weights_file(tmp_path / "both.pth")
    with pytest.raises(UsageError) as caught:
        fit(SMALL, both)
    assert "holds 2 networks that fit: 'model_ema' (a moving average) and 'model'" in caught.value.message
    assert caught.value.fix == "--weights-entry model_ema\n--weights-entry model"
    ema, raw = (fit(SMALL, both, entry=name) for name in ("model_ema", "model"))
    assert ema.state["conv1.weight"].eq(1).all()
    assert torch.equal(raw.state["conv1.weight"], small_state["conv1.weight"])
    assert ema.left_out == ("n_averaged", f"model ({len(small_state)} tensors)")
    assert raw.entry == "model"
    with pytest.raises(UsageError, match=r"--weights-entry best: .* holds no such network"):
        fit(SMALL, both, entry="best")


def test_two_networks_in_one_mapping_are_told_apart_by_their_prefix(small_state: dict[str, Tensor]) -> None:
    student = {f"student.{name}": tensor for name, tensor in small_state.items()}
    teacher = {f"teacher.{name}": tensor + 1 for name, tensor in small_state.items()}
    both = in_memory({**student, **teacher}, "distilled.pth")
    with pytest.raises(UsageError, match="'student' and 'teacher'"):
        fit(SMALL, both)
    found = fit(SMALL, both, entry="teacher").state
    assert torch.equal(found["fc.bias"], small_state["fc.bias"] + 1)


def test_the_same_weights_under_two_names_are_one_network(tmp_path: Path, small_state: dict[str, Tensor]) -> None:
    torch.save({"model": small_state, "best": dict(small_state)}, tmp_path / "twice.pth")
    found = fit(SMALL, read_weights_file(tmp_path / "twice.pth"))
    assert torch.equal(found.state["fc.bias"], small_state["fc.bias"])


@pytest.mark.parametrize(
    ("head", "have"),
    [
        ({}, "the file has none"),
        ({"fc.weight": torch.zeros(10, 64)}, "the file has fc.weight [10, 64]"),
        (
            {"fc.1.weight": torch.zeros(10, 64), "fc.1.bias": torch.zeros(10)},
            "the file has fc.1.weight [10, 64], fc.1.bias [10]",
        ),
    ],
)
def test_another_head_is_named_and_a_training_may_start_a_new_one(
    small_state: dict[str, Tensor], head: dict[str, Tensor], have: str
) -> None:
    backbone = {name: tensor for name, tensor in small_state.items() if not name.startswith("fc.")}
    file = in_memory({**backbone, **head}, "file.pth")
    with pytest.raises(BadWeights) as caught:
        fit(SMALL, file)
    assert "file.pth has all layers of cifar-resnet8 but another head: fc.weight [classes, 64]" in caught.value.message
    assert have in caught.value.message
    assert "train --weights" in (caught.value.fix or "")
    found = fit(SMALL, file, head=False)
    assert found.state.keys() == backbone.keys()
    assert have in found.head_problem


def test_layers_that_ours_lack_are_a_misfit_and_not_left_out(small_state: dict[str, Tensor]) -> None:
    deeper = build(catalog.lookup("cifar-resnet14").config).state_dict()
    with pytest.raises(BadWeights, match=r"unexpected \(layer1\.1\.conv1\.weight"):
        fitted(SMALL, deeper, origin="x")
    found = fit(SMALL, in_memory({**small_state, "criterion.weight": torch.ones(10)}, "x"))
    assert found.left_out == ("criterion.weight",)
    assert "criterion.weight" in found.notes[0]


class _Bomb:
    """Eight gigabytes out of a few bytes."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (bytearray, (8 << 30,))


class _TensorBomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (torch.Tensor, (1 << 33,))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits of memory need Linux")
@pytest.mark.parametrize("bomb", [_Bomb, _TensorBomb])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_takes_gigabytes_is_refused_before_it_has_them(
    tmp_path: Path, small_state: dict[str, Tensor], bomb: type, legacy: bool
) -> None:
    path = tmp_path / "bomb.pth"
    torch.save({"state_dict": small_state, "extra": bomb()}, path, _use_new_zipfile_serialization=not legacy)
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    with pytest.raises(BadWeights, match="is refused"):
        read_weights_file(path)
    assert max(before, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) < 4 << 20  # KiB


def test_pictures_are_prepared_as_the_weights_file_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = catalog.lookup("resnet50")
    mine = WeightsFile(origin="x", entries={}, path=tmp_path / "mine.pth")
    assert stated_preprocessing(mine, entry) is None

    second = replace(mine, path=tmp_path / "resnet50-11ad3fa6.pth")
    monkeypatch.setattr(files, "sha256_file", lambda path: "11ad3fa6" + "0" * 56)
    found = stated_preprocessing(second, entry)
    assert found is not None
    assert (found[0].resize, found[0].image_size) == (232, 224)
    assert found[1] == "torchvision's ResNet50_Weights.IMAGENET1K_V2"
    monkeypatch.setattr(files, "sha256_file", lambda path: "f" * 64)  # called like it, and another file
    assert stated_preprocessing(second, entry) is None

    stated = {
        "input_size": [3, 288, 288],
        "crop_pct": 0.95,
        "interpolation": "bicubic",
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
    }
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"architecture": "resnet50", "pretrained_cfg": stated}))
    expected = Preprocessing(
        image_size=288, resize=303, interpolation="bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
    )
    assert stated_preprocessing(mine, entry) == (expected, str(config))
    for damage in (
        "{",
        "[]",
        '{"pretrained_cfg": {"input_size": 3}}',
        json.dumps({"pretrained_cfg": {**stated, "crop_pct": 0}}),
    ):
        config.write_text(damage)
        assert stated_preprocessing(mine, entry) is None
    options = {**stated, "input_size": None, "img_size": 288}
    assert stated_preprocessing(replace(mine, options=options), entry) == (expected, "the checkpoint's own options")


class _Hostile:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


class _HostileExec(_Hostile):
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, (f"import pathlib; pathlib.Path({str(self.target)!r}).touch()",))


@pytest.mark.parametrize("hostile", [_Hostile, _HostileExec])
@pytest.mark.parametrize("container", ["zip", "legacy", "bare pickle", "inside"])
def test_a_hostile_pickle_is_refused_and_not_run(
    tmp_path: Path, small_state: dict[str, Tensor], hostile: type[_Hostile], container: str
) -> None:
    target, path = tmp_path / "created", tmp_path / "weights.pth"
    if container == "bare pickle":
        path.write_bytes(pickle.dumps(hostile(target)))
    elif container == "inside":
        torch.save({"state_dict": small_state, "epoch": hostile(target)}, path)
    else:
        torch.save(hostile(target), path, _use_new_zipfile_serialization=container == "zip")
    with pytest.raises(BadWeights) as caught:
        read(path)
    assert not target.exists()
    if container == "bare pickle":
        assert "not a PyTorch state dict" in caught.value.message
    else:
        assert "weights.pth is refused: it contains" in caught.value.message
        assert "safetensors" in (caught.value.fix or "")
    with contextlib.suppress(Exception):  # the file is a real threat: plain unpickling does run it
        torch.load(path, weights_only=False)
    if container != "bare pickle":
        assert target.exists()


def _write_torchscript(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(build(SMALL).eval(), torch.zeros(1, 3, 32, 32)), str(path))


def _write_exported_program(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),)), path)


def _write_zip(path: Path, compression: int, names: tuple[str, ...]) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name in names:
            archive.writestr(name, b"\0" * 1000)


_STORED, _DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p: None, "can't read the weights"),
        (lambda p: p.mkdir(), "is a folder"),
        (lambda p: p.touch(), "is empty"),
        (lambda p: p.write_bytes(b"\x80"), "damaged or not a PyTorch state dict"),
        (lambda p: p.write_text("these are not weights, but a page of text"), "is not a weights file"),
        (lambda p: p.write_bytes(random.Random(0).randbytes(4096)), "is not a weights file"),
        (lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 99), "is not a weights file"),
        (lambda p: p.write_bytes((2**60).to_bytes(8, "little") + b"{}" + b"\0" * 99), "not a safetensors file"),
        (lambda p: p.write_bytes((2).to_bytes(8, "little") + b"{}"), "holds no tensors"),
        (lambda p: torch.save({}, p), "holds no tensors"),
        (lambda p: torch.save({"epoch": 1, "lr": 0.1}, p), "its entries are 'epoch', 'lr'"),
        (lambda p: torch.save(torch.zeros(3), p), "holds a single tensor"),
        (lambda p: torch.save([torch.zeros(3)], p), "holds a list"),
        (lambda p: torch.save({"w": torch.zeros(1).expand(10**6)}, p), "more than the file holds"),
        (lambda p: torch.save({"w": torch.eye(3).to_sparse(), "v": torch.eye(3)}, p), "'w' is sparse"),
        (lambda p: torch.save({"w": torch.empty(3, device="meta"), "v": torch.eye(3)}, p), "'w' is"),
        (_write_torchscript, "TorchScript archive"),
        (_write_exported_program, "exported program"),
        (lambda p: _write_zip(p, _STORED, ("a.npy",)), "not one that torch.save wrote"),
        (lambda p: _write_zip(p, _DEFLATED, ("x/data.pkl", "x/data/0")), "compressed entries"),
        (lambda p: _write_zip(p, _STORED, ("x/data.pkl", "x/version")), "damaged or not a PyTorch state dict"),
    ],
)
def test_a_file_that_is_no_weights_file_is_one_clear_error(tmp_path: Path, write: Any, message: str) -> None:
    path = tmp_path / "weights.pth"
    write(path)
    with pytest.raises(BadWeights) as caught:
        read(path)
    assert message in caught.value.message
    assert str(path) in caught.value.message
    assert caught.value.exit_code == 2
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 400 + len(str(path))


def test_an_unreadable_file_is_told(tmp_path: Path) -> None:
    loop = tmp_path / "loop.pth"
    loop.symlink_to(loop)
    with pytest.raises(BadWeights, match="can't read the weights"):
        read(loop)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_cut_file_is_refused(tmp_path: Path, small_state: dict[str, Tensor], kind: str) -> None:
    path = tmp_path / "weights"
    if kind == "safetensors":
        safetensors.torch.save_file(small_state, path)
    else:
        torch.save(small_state, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    dice = random.Random(0)
    for cut in sorted({dice.randrange(len(whole)) for _ in range(60)} | {1, 8, 9, 64, len(whole) - 1}):
        path.write_bytes(whole[:cut])
        with pytest.raises(BadWeights):
            read(path)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_flipped_bits_are_refused_or_harmless_where_the_format_has_checksums(
    tmp_path: Path, small_state: dict[str, Tensor], kind: str
) -> None:
    """Only the zip format has checksums; in the others a flip inside the numbers can't be told, but never crashes."""
    path = tmp_path / "weights"
    if kind == "safetensors":
        safetensors.torch.save_file(small_state, path)
    else:
        torch.save(small_state, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    dice = random.Random(1)
    refused = 0
    for turn in range(120):
        flipped = bytearray(whole)
        position = dice.randrange(len(whole)) if turn % 2 else dice.randrange(3000)
        flipped[position] ^= 1 << dice.randrange(8)
        path.write_bytes(flipped)
        try:
            found = read(path)
        except BadWeights:
            refused += 1
            continue
        if kind == "zip":
            assert all(torch.equal(found[name], small_state[name]) for name in small_state)
    assert refused > (90 if kind == "zip" else 10)


# ---- fitting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "backbone.", "_orig_mod.module."])
def test_prefixes_and_dialects_are_understood(small_state: dict[str, Tensor], prefix: str) -> None:
    theirs = {prefix + name.replace("fc.", "linear."): tensor for name, tensor in small_state.items()}
    config, state = fitted(SMALL, theirs, origin="theirs")
    assert config == SMALL
    assert all(torch.equal(state[name], small_state[name]) for name in small_state)


def test_an_averaged_model_s_counter_is_no_weight(small_state: dict[str, Tensor]) -> None:
    averaged = {"n_averaged": torch.tensor(5), **{f"module.{name}": t for name, t in small_state.items()}}
    assert fitted(SMALL, averaged, origin="ema")[1].keys() == small_state.keys()


def test_batch_counters_may_be_absent(small_state: dict[str, Tensor]) -> None:
    old = {name: tensor for name, tensor in small_state.items() if "num_batches" not in name}
    assert fitted(SMALL, old, origin="old")[1].keys() == small_state.keys()


@pytest.mark.parametrize("option", ["A", "B", "C"])
@pytest.mark.parametrize("asked", ["A", "B", "C"])
def test_shortcut_option_and_classes_are_the_weights_own(option: Any, asked: Any) -> None:
    assert isinstance(SMALL, ResNetConfig)
    theirs = with_classes(replace(SMALL, shortcut=option), 17)
    state = {name.replace("downsample", "shortcut"): t for name, t in build(theirs).state_dict().items()}
    config, found = fitted(replace(SMALL, shortcut=asked), state, origin="theirs")
    assert config == theirs
    assert found["fc.weight"].shape == (17, 64)


def test_a_plain_net_stays_plain(small_state: dict[str, Tensor]) -> None:
    plain = catalog.lookup("cifar-plain8").config
    assert fitted(plain, small_state, origin="plain")[0] == plain
    assert isinstance(SMALL, ResNetConfig)
    with pytest.raises(BadWeights, match=r"does not fit.*unexpected \(layer2\.0\.downsample"):
        fitted(plain, build(replace(SMALL, shortcut="B")).state_dict(), origin="residual")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32_copies(small_state: dict[str, Tensor], dtype: torch.dtype) -> None:
    theirs = {name: t.to(dtype) if t.is_floating_point() else t for name, t in small_state.items()}
    _, state = fitted(SMALL, theirs, origin="half")
    for name, tensor in state.items():
        assert tensor.dtype == (torch.int64 if name.endswith("num_batches_tracked") else torch.float32)
        assert torch.equal(tensor, theirs[name].to(tensor.dtype))


def test_fitted_tensors_are_copies_that_stand_alone(small_state: dict[str, Tensor]) -> None:
    strided = {name: t.to(memory_format=torch.channels_last) if t.ndim == 4 else t for name, t in small_state.items()}
    _, state = fitted(SMALL, strided, origin="x")
    assert all(tensor.is_contiguous() for tensor in state.values())
    small_state["fc.bias"].add_(1)
    assert not torch.equal(state["fc.bias"], small_state["fc.bias"])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("layer2.0.conv1.weight", float("nan"), "'layer2.0.conv1.weight' has NaN or infinity"),
        ("fc.bias", float("inf"), "'fc.bias' has NaN or infinity"),
        ("bn1.running_mean", float("-inf"), "'bn1.running_mean' has NaN or infinity"),
        ("bn1.running_var", -1.0, "'bn1.running_var' has a negative variance"),
    ],
)
def test_numbers_that_cannot_be_weights_are_refused_by_name(
    small_state: dict[str, Tensor], name: str, value: float, message: str
) -> None:
    small_state[name].view(-1)[0] = value
    with pytest.raises(BadWeights) as caught:
        fitted(SMALL, small_state, origin="file.pth")
    assert caught.value.message.startswith("file.pth: ")
    assert message in caught.value.message


def test_values_beyond_float32_and_whole_numbers_are_refused(small_state: dict[str, Tensor]) -> None:
    too_large = {**small_state, "fc.bias": torch.full((10,), 1e300, dtype=torch.float64)}
    with pytest.raises(BadWeights, match=r"'fc\.bias' has values too large for float32"):
        fitted(SMALL, too_large, origin="x")
    with pytest.raises(BadWeights, match=r"'fc\.bias' is int8, expected a floating dtype"):
        fitted(SMALL, {**small_state, "fc.bias": torch.zeros(10, dtype=torch.int8)}, origin="x")


def test_two_tensors_for_one_name_are_refused(small_state: dict[str, Tensor]) -> None:
    with pytest.raises(BadWeights, match=r"two tensors are both 'fc\.bias'"):
        fitted(SMALL, {**small_state, "linear.bias": torch.zeros(10)}, origin="x")


@pytest.mark.parametrize(
    ("asked", "really", "parts"),
    [
        ("cifar-resnet20", "cifar-resnet8", ("missing (layer1.1.conv1.weight", "these look like cifar-resnet8")),
        ("cifar-resnet8", "cifar-resnet20", ("unexpected (layer1.1.conv1.weight", "these look like cifar-resnet20")),
        ("resnet18", "cifar-resnet8", ("conv1.weight is [16, 3, 3, 3], expected [64, 3, 7, 7]", "cifar-resnet8")),
        ("vgg16", "cifar-resnet8", ("does not fit vgg16", "missing (features.0.weight")),
        ("resnet50", "resnet34", ("does not fit resnet50", "these look like resnet34: --model resnet34")),
        ("resnet34", "resnet101", ("does not fit resnet34", "these look like resnet101: --model resnet101")),
    ],
)
def test_a_misfit_names_tensors_and_the_network_that_fits(asked: str, really: str, parts: tuple[str, ...]) -> None:
    state = build_empty(with_classes(catalog.lookup(really).config, 5)).state_dict()
    with pytest.raises(BadWeights) as caught:
        fitted(catalog.lookup(asked).config, state, origin="file.pth")
    whole = f"{caught.value.message} | {caught.value.fix}"
    assert whole.startswith("file.pth does not fit ")
    for part in parts:
        assert part in whole
    assert len(whole) < 800


def test_weights_of_no_catalog_network_are_told(small_state: dict[str, Tensor]) -> None:
    del small_state["layer3.0.bn2.bias"]
    with pytest.raises(BadWeights) as caught:
        fitted(SMALL, small_state, origin="x")
    assert "1 missing (layer3.0.bn2.bias)" in caught.value.message
    assert "fit no network of the catalog" in (caught.value.fix or "")
    with torch.device("meta"):
        normed = torchvision.models.vgg16_bn(weights=None)
    with pytest.raises(BadWeights) as caught:
        fitted(catalog.lookup("vgg16").config, normed.state_dict(), origin="x")
    assert "batch normalisation" in (caught.value.fix or "")


def test_networks_are_recognised_by_their_tensors(small_state: dict[str, Tensor]) -> None:
    assert recognise(small_state) == ["cifar-resnet8"]
    assert recognise(build_empty(catalog.lookup("resnet50").config).state_dict()) == ["resnet50", "resnet50-v1"]
    assert recognise({"a": torch.zeros(1)}) == []


# ---- random weights -------------------------------------------------------------------------------------------------


def _pictures(count: int, side: int, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth coloured noise: pictures that differ, with more than pixel noise in them."""
    dice = np.random.default_rng(seed)
    coarse = dice.integers(0, 256, (count, 8, 8, 3)).repeat(side // 8, 1).repeat(side // 8, 2)
    return np.clip(coarse + dice.integers(-20, 21, coarse.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("name", "side"),
    [
        *(("resnet18", 64), ("resnet50-v1", 64), ("resnet152", 64), ("vgg16", 64)),
        *(("cifar-resnet20", 32), ("cifar-resnet110", 32)),
    ],
)
def test_random_networks_answer_differently_to_different_pictures(name: str, side: int) -> None:
    entry = catalog.lookup(name)
    pictures = _pictures(8, side)
    state = random_state_dict(entry.config, entry.preprocessing, seed=0, pictures=pictures)
    network = _loaded(entry.config, state)
    with torch.inference_mode():
        logits = network(torch.from_numpy(entry.preprocessing.normalise(pictures)))
    assert torch.isfinite(logits).all()
    assert 0.02 < logits.std(dim=0).mean() < 5
    assert logits.argmax(dim=1).unique().numel() >= 3


@pytest.mark.parametrize(
    ("name", "side"),
    [("resnet50", 64), ("resnet152", 64), ("plain34", 64), ("cifar-plain56", 32), ("cifar-plain110", 32)],
)
def test_random_networks_do_not_amplify_rounding_errors(name: str, side: int) -> None:
    # With batch norm's scale 1 and shift 0 everywhere these are chaotic: 4e-5 to 8e-4.
    entry = catalog.lookup(name)
    state = random_state_dict(entry.config, entry.preprocessing, seed=0, pictures=_pictures(16, side))
    network = _loaded(entry.config, state)
    batch = torch.from_numpy(entry.preprocessing.normalise(_pictures(4, side, seed=1)))
    with torch.inference_mode():
        found = network(batch).double()
        gold = network.double()(batch.double())
    error = ((found - gold).pow(2).mean(1) / gold.pow(2).mean(1)).sqrt()
    assert error.max() < 8e-6


def test_batch_norm_statistics_are_those_of_the_pictures() -> None:
    entry = catalog.lookup("cifar-resnet8")
    pictures = _pictures(16, 32)
    state = random_state_dict(entry.config, entry.preprocessing, seed=0, pictures=pictures)
    network = _loaded(entry.config, state)
    before: list[Tensor] = []
    network.get_submodule("bn1").register_forward_pre_hook(lambda module, inputs: before.append(inputs[0]))
    with torch.inference_mode():
        network(torch.from_numpy(entry.preprocessing.normalise(pictures)))
    torch.testing.assert_close(state["bn1.running_mean"], before[0].mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state["bn1.running_var"], before[0].var((0, 2, 3)), rtol=1e-4, atol=1e-6)


def test_random_weights_follow_the_seed_and_leave_global_randomness_alone() -> None:
    entry = catalog.lookup("cifar-resnet8")

    def draw(seed: int) -> dict[str, Tensor]:
        return random_state_dict(entry.config, entry.preprocessing, seed=seed, pictures=_pictures(18, 32))

    before = torch.get_rng_state()
    first, again, other = draw(0), draw(0), draw(1)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])
    assert store_state_dict(first) == store_state_dict(again)
    vgg = catalog.lookup("vgg16")
    random_state_dict(with_classes(vgg.config, 3), vgg.preprocessing, seed=0, pictures=_pictures(2, 32))
    assert torch.equal(torch.get_rng_state(), before)  # VGG's dropout would have drawn


@pytest.mark.parametrize(
    "pictures",
    [
        np.zeros((1, 32, 32, 3), np.uint8),
        np.zeros((4, 3, 32, 32), np.uint8),
        np.zeros((4, 32, 32, 3), np.float32),
        np.zeros((32, 32, 3), np.uint8),
    ],
)
def test_pictures_of_another_kind_are_refused(pictures: Any) -> None:
    entry = catalog.lookup("cifar-resnet8")
    with pytest.raises(UsageError, match="uint8"):
        random_state_dict(entry.config, entry.preprocessing, seed=0, pictures=pictures)


# ---- keeping and opening --------------------------------------------------------------------------------------------


def _network(path: Path, sha256: str) -> Network:
    return Network(
        name="cifar-resnet8",
        config=SMALL,
        preprocessing=catalog.lookup("cifar-resnet8").preprocessing,
        labels=None,
        weights=path,
        weights_sha256=sha256,
        weights_source="test",
        trained=False,
    )


def test_a_stored_network_opens_again_bit_identical(small_state: dict[str, Tensor]) -> None:
    path, sha256 = store_state_dict(small_state)
    assert path.name == f"{sha256}.safetensors"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == sha256
    assert store_state_dict(dict(reversed(small_state.items())))[1] == sha256
    network = _network(path, sha256).load()
    assert not network.training
    loaded = network.state_dict()
    assert all(torch.equal(loaded[name], small_state[name]) for name in small_state)
    path.unlink()  # nothing of it is still needed
    assert network(torch.zeros(2, 3, 32, 32)).isfinite().all()


def test_damaged_missing_and_foreign_weights_do_not_open(tmp_path: Path, small_state: dict[str, Tensor]) -> None:
    path, sha256 = store_state_dict(small_state)
    copy = tmp_path / "weights.safetensors"
    flipped = bytearray(path.read_bytes())
    flipped[-5] ^= 1
    copy.write_bytes(flipped)
    with pytest.raises(BadWeights, match="SHA-256"):
        _network(copy, sha256).load()
    copy.unlink()
    with pytest.raises(BadWeights, match="are gone"):
        _network(copy, sha256).load()
    copy.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(BadWeights, match="damaged"):
        load_network(SMALL, copy)
    with pytest.raises(BadWeights, match="does not fit cifar-resnet20"):
        load_network(catalog.lookup("cifar-resnet20").config, path)
    safetensors.torch.save_file({**small_state, "fc.bias": small_state["fc.bias"].half()}, copy)
    with pytest.raises(BadWeights, match=r"'fc\.bias' is torch\.float16"):
        load_network(SMALL, copy)


# ---- downloading ----------------------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[Server]:
    with running_server() as stand_in:
        yield stand_in


def _point_torchvision_at(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    from torchvision.models import ResNet18_Weights

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(ResNet18_Weights.IMAGENET1K_V1._value_, "url", url)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RESNET_ONNX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "downloads"


@pytest.fixture(scope="module")
def published() -> tuple[bytes, dict[str, Tensor]]:
    """What the server would send: a ResNet-18 of its own."""
    state = _filled(build(catalog.lookup("resnet18").config, generator=torch.Generator().manual_seed(9))).state_dict()
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue(), state


def test_imagenet_weights_are_downloaded_once_and_checked(
    server: Server, monkeypatch: pytest.MonkeyPatch, own_cache: Path, published: tuple[bytes, dict[str, Tensor]]
) -> None:
    data, expected = published
    name = f"/resnet18-{hashlib.sha256(data).hexdigest()[:8]}.pth"
    server.content[name] = data
    _point_torchvision_at(monkeypatch, server.url + name)
    entry = catalog.lookup("resnet18")
    state = imagenet_weights(entry).state
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    imagenet_weights(entry)
    assert server.asked == [name]
    cached = own_cache / name[1:]
    damaged = bytearray(cached.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    cached.write_bytes(damaged)
    state = imagenet_weights(entry).state
    assert server.asked == [name, name]
    assert all(torch.equal(state[key], expected[key]) for key in expected)


def test_a_download_with_another_hash_is_refused_and_not_kept(
    server: Server, monkeypatch: pytest.MonkeyPatch, own_cache: Path, published: tuple[bytes, dict[str, Tensor]]
) -> None:
    server.content["/resnet18-deadbeef.pth"] = published[0]
    _point_torchvision_at(monkeypatch, f"{server.url}/resnet18-deadbeef.pth")
    with pytest.raises(BadWeights, match="not what was published"):
        imagenet_weights(catalog.lookup("resnet18"))
    assert list(own_cache.iterdir()) == []


def test_without_a_network_the_message_says_so(
    server: Server, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    refused = f"{refusing_url()}/resnet18-f37072fd.pth"
    unknown = "http://no-such-host.invalid/resnet18-f37072fd.pth"
    for url in (refused, unknown, f"{server.url}/resnet18-f37072fd.pth"):
        _point_torchvision_at(monkeypatch, url)
        with pytest.raises(NetworkUnavailable) as caught:
            imagenet_weights(catalog.lookup("resnet18"))
        assert caught.value.exit_code == 3
        assert "there is no network" in caught.value.message
        assert url in caught.value.message
        assert f"resnet18-f37072fd.pth was looked for in {own_cache}" in caught.value.message
        assert "--weights resnet18-f37072fd.pth" in (caught.value.fix or "")
    assert "HTTP 404" in caught.value.message
    assert list(own_cache.iterdir()) == []
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize(
    ("name", "fix"),
    [("resnet50-v1", "use resnet50,"), ("plain34", "--weights PATH"), ("cifar-resnet20", "--weights PATH")],
)
def test_networks_without_imagenet_weights_say_what_to_do(name: str, fix: str) -> None:
    with pytest.raises(UsageError, match=f"no ImageNet weights for {name}") as caught:
        imagenet_weights(catalog.lookup(name))
    assert fix in (caught.value.fix or "")
