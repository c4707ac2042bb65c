"""Networks of timm and torchvision by name: what they are, where their weights come from, and what can't be done."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.torch
import timm
import torch
from huggingface_hub import constants as hub
from numpy.typing import NDArray
from support.servers import Server, refusing_url, running_server
from timm.data import resolve_model_data_config
from torch import nn

from converters import torch_export
from resnet_onnx import workflow
from resnet_onnx.cli.main import main
from resnet_onnx.data.samples import sample_pictures
from resnet_onnx.models import libraries
from resnet_onnx.models.build import build_empty
from resnet_onnx.models.fitting import fit
from resnet_onnx.models.network import is_non_commercial
from resnet_onnx.models.weights_file import in_memory
from resnet_onnx.workflow import Request
from runtimes.errors import BadWeights, NetworkUnavailable, ToolkitError, UnsupportedModel, UsageError
from runtimes.registry import open_runtime
from runtimes.spec import ModelSource

TINY = "timm:test_resnet"
"""timm's own for tests: a deep stem, shortcuts that average, basic blocks and a bottleneck; 0.5 M parameters."""
HUB_FILE = "timm/test_resnet.r160_in1k", "model.safetensors"


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run_json(capfd: Any, *arguments: str) -> tuple[int, dict[str, Any]]:
    capfd.readouterr()
    code = main([*arguments, "--json"])
    document: dict[str, Any] = json.loads(capfd.readouterr().out)
    return code, document


def tiny_weights(seed: int = 3, **options: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    module = timm.create_model("test_resnet", zero_init_last=False, **options)
    return {name: tensor.detach() for name, tensor in module.state_dict().items()}


# ---- names and preparation -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet50d", "resnet50.a1_in1k", "regnety_002", "vgg11_bn", "test_resnet"])
@pytest.mark.parametrize("testing", [False, True])
def test_pictures_are_prepared_as_timm_says(name: str, testing: bool) -> None:
    cfg = resolve_model_data_config(timm.create_model(name), use_test_size=testing)
    if testing and cfg == resolve_model_data_config(timm.create_model(name)):
        with pytest.raises(UsageError, match="none for testing"):
            libraries.lookup(f"timm:{name}", test_size=True)
        return
    entry = libraries.lookup(f"timm:{name}", test_size=testing)
    found = entry.preprocessing
    assert (found.image_size, found.interpolation) == (cfg["input_size"][1], cfg["interpolation"])
    assert found.resize == int(found.image_size / cfg["crop_pct"])
    assert (found.mean, found.std) == (tuple(cfg["mean"]), tuple(cfg["std"]))
    assert ("for testing:" in entry.notes[0]) == testing


def test_the_weights_named_by_a_tag_have_their_own_preparation() -> None:
    first, second = (libraries.lookup(f"torchvision:resnet50.IMAGENET1K_V{number}") for number in (1, 2))
    assert (first.preprocessing.resize, second.preprocessing.resize) == (256, 232)
    assert libraries.lookup("torchvision:resnet50").preprocessing == second.preprocessing
    assert libraries.lookup("timm:resnet50.tv_in1k").preprocessing.interpolation == "bilinear"
    assert libraries.lookup("timm:resnet50").preprocessing.interpolation == "bicubic"


@pytest.mark.parametrize(
    ("name", "message", "fix"),
    [
        ("timm:resnet50dd", "did you mean timm:resnet50d", "models --source timm"),
        ("timm:resnet50.nosuch", "timm has no weights 'nosuch' for resnet50", "it has a1_in1k"),
        ("timm:", "timm has no network named ''", "models --source timm"),
        ("timm:hf-hub:someone/model", "no network named 'hf-hub:someone/model'", "models --source timm"),
        ("torchvision:resnet5", "did you mean torchvision:resnet50", "--source torchvision"),
        ("torchvision:fcn_resnet50", "no network named 'fcn_resnet50'", "--source torchvision"),
        ("torchvision:resnet50.V3", "torchvision has no weights 'V3' for resnet50", "IMAGENET1K_V1, IMAGENET1K_V2"),
        ("resnet26t", "no network is named 'resnet26t'", "timm:resnet26t has one of that name"),
        ("resnet50.a1_in1k", "no such file", "timm:resnet50.a1_in1k has one of that name"),
        ("regnet_y_400mf", "no network is named", "torchvision:regnet_y_400mf has one of that name"),
        ("resnext50_32x4d", "did you mean resnext50-32x4d", "timm:resnext50_32x4d and torchvision:resnext50_32x4d"),
    ],
)
def test_a_name_that_is_wrong_is_told_with_the_right_one(name: str, message: str, fix: str) -> None:
    with pytest.raises(ToolkitError) as caught:
        workflow.check_request(Request(model=name))
    assert caught.value.exit_code == 2
    assert message in caught.value.message
    assert fix in (caught.value.fix or "")


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(model="resnet18", test_size=True), "'resnet18' has one"),
        (Request(model=TINY, test_size=True), "none for testing"),
        (Request(model="torchvision:resnet18", test_size=True), "none for testing"),
        (Request(model=TINY, variant="v1"), "for the catalog's own networks"),
        (Request(model=TINY, weights="imagenet"), "torchvision's for the catalog's networks"),
        (Request(model="resnet18", weights="pretrained"), "not for resnet18"),
    ],
)
def test_options_that_do_not_fit_a_network_are_told(request_: Request, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        workflow.resolve(request_)


def test_networks_are_listed_and_counted(capfd: Any) -> None:
    code, document = run_json(capfd, "models", "--source", "timm", "--filter", "test_resne*")
    assert code == 0
    (row,) = document["models"]
    module = timm.create_model("test_resnet")
    assert row["name"] == TINY
    assert row["parameters"] == sum(parameter.numel() for parameter in module.parameters())
    assert (row["image_size"], row["weights"], row["dataset"]) == (160, ["r160_in1k"], "imagenet")
    products = []
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            part.register_forward_hook(
                lambda part, _, out: products.append(out[0].numel() * part.weight[0].numel())  # type: ignore[misc]
            )
    module.eval()(torch.zeros(1, 3, 160, 160))
    assert row["multiply_adds"] == sum(products)
    code, document = run_json(capfd, "models", "torchvision:regnet_y_400mf", "timm:resnet18", "resnet18")
    tv, theirs, ours = document["models"]
    assert tv["parameters"] == 4_344_144  # torchvision's metadata
    assert (theirs["parameters"], theirs["multiply_adds"]) == (ours["parameters"], ours["multiply_adds"])
    assert (theirs["weights_license"], ours["weights"]) == ("apache-2.0", [])
    code, document = run_json(capfd, "models", "--source", "timm", "--filter", "nosuch*")
    assert code == 2
    assert "no network of such a name" in document["error"]["message"]


# ---- the module ------------------------------------------------------------------------------------------------------


def errors_of(path: Path, network: nn.Module, pictures: NDArray[np.float32]) -> tuple[float, float]:
    """Returns the relative RMSE of an ONNX file and of the module in float32, against the module in float64."""
    with torch.inference_mode():
        single = network(torch.from_numpy(pictures)).double()
        gold = network.double()(torch.from_numpy(pictures).double())
    with open_runtime("ort-cpu", ModelSource(path=path)) as runtime:
        (found,) = runtime.run({"input": pictures}).values()

    def error(other: torch.Tensor) -> float:
        return float((other - gold).norm() / gold.norm())

    return error(torch.from_numpy(found).double()), error(single)


@pytest.mark.parametrize("name", [TINY, "torchvision:regnet_y_400mf"])
def test_a_library_s_network_goes_all_the_way(name: str, tmp_path: Path, capfd: Any) -> None:
    file = tmp_path / "exported.onnx"
    code, exported = run_json(capfd, "export", "--model", name, "--image-size", "96", "--output", str(file))
    assert (code, exported["model"]) == (0, name)
    model = workflow.resolve(Request(model=str(file)))
    assert model.network is not None
    assert model.labels is not None
    assert model.labels[0] == "tench"
    pictures = model.network.preprocessing.normalise(sample_pictures(5, model.network.preprocessing, seed=1))
    onnx_error, own_error = errors_of(file, model.network.load(), pictures)
    assert onnx_error <= 4 * own_error
    assert own_error < 8e-6  # random weights that amplify rounding errors prove nothing
    code, parity = run_json(capfd, "parity", str(file), "--runtimes", "torch,ort-cpu,openvino")
    assert code == 0, parity
    assert parity["passed"]


@pytest.mark.parametrize("name", ["timm:resnet18", "torchvision:resnet18", "timm:resnetv2_18", "timm:regnety_002"])
def test_no_branch_of_random_weights_is_silent_or_loud(name: str) -> None:
    model = workflow.resolve(Request(model=name, image_size=64))
    assert model.network is not None
    network = model.network.load()
    silent = [key for key, p in network.named_parameters() if key.endswith("weight") and not p.any()]
    assert silent == []
    pictures = torch.from_numpy(model.network.preprocessing.normalise(
        sample_pictures(6, model.network.preprocessing, seed=2)
    ))  # fmt: skip
    with torch.inference_mode():
        found = network(pictures).double()
        gold = network.double()(pictures.double())
    assert float((found - gold).norm() / gold.norm()) < 8e-6
    assert gold.argmax(1).unique().numel() >= 3


def test_what_a_module_keeps_outside_its_state_is_there() -> None:
    """A blur's filter is a buffer that no weights file holds."""
    config = libraries.lookup("timm:resnetblur18").config
    network = build_empty(config)
    filters = [buffer for name, buffer in network.named_buffers() if name.endswith("filt")]
    assert filters
    assert all(buffer.sum() == pytest.approx(len(buffer)) for buffer in filters)


# ---- weights ---------------------------------------------------------------------------------------------------------


def test_a_local_file_brings_its_preparation_and_license(tmp_path: Path, capfd: Any) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(tiny_weights(num_classes=7), path)
    stated = {"input_size": [3, 128, 128], "crop_pct": 0.5, "interpolation": "bilinear", "mean": [0.5] * 3,
              "std": [0.5] * 3, "license": "cc-by-nc-4.0"}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": stated}))
    model = workflow.resolve(Request(model=str(path), name=TINY))
    assert model.network is not None
    assert model.network.config.num_classes == 7
    assert (model.network.preprocessing.image_size, model.network.preprocessing.resize) == (128, 256)
    assert model.network.weights_file_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert any("cc-by-nc-4.0, allows no commercial use" in note for note in model.notes)
    output = tmp_path / "exported.onnx"
    code, exported = run_json(capfd, "export", str(path), "--model", TINY, "--output", str(output))
    assert code == 0
    assert exported["weights_license"] == "cc-by-nc-4.0"
    record = {entry.key: entry.value for entry in onnx.load(str(output)).metadata_props}["resnet_onnx.network"]
    assert json.loads(record)["weights_license"] == "cc-by-nc-4.0"
    assert any("no commercial use" in note for note in workflow.resolve(Request(model=str(output))).notes)


@pytest.mark.parametrize("prefix", ["", "module.", "model.backbone."])
def test_weights_are_found_behind_any_prefix_and_misfits_named(prefix: str) -> None:
    config = libraries.lookup(TINY).config
    state = tiny_weights(num_classes=5)
    found = fit(config, in_memory({prefix + name: tensor for name, tensor in state.items()}, "x"))
    assert found.config.num_classes == 5
    assert all(torch.equal(found.state[name], state[name]) for name in state if "num_batches" not in name)
    headless = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    assert "fc.weight [classes, 96]" in fit(config, in_memory(headless, "x"), head=False).head_problem
    del state["layer3.0.conv2.weight"]
    with pytest.raises(BadWeights, match=r"does not fit timm:test_resnet: tensors 1 missing \(layer3\.0\.conv2"):
        fit(config, in_memory(state, "x"))


@pytest.fixture
def server() -> Iterator[Server]:
    with running_server() as stand_in:
        yield stand_in


@pytest.fixture
def own_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "hub"


def _point_hub_at(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setattr(hub, "ENDPOINT", url)
    monkeypatch.setattr(hub, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


def test_timms_weights_are_downloaded_once_and_checked(
    server: Server, monkeypatch: pytest.MonkeyPatch, own_hub: Path
) -> None:
    state = tiny_weights()
    data = safetensors.torch.save(state)
    server.put_on_hub(*HUB_FILE, data)
    _point_hub_at(monkeypatch, server.url)
    model = workflow.resolve(Request(model=TINY, weights="pretrained"))
    assert model.network is not None
    loaded = model.network.load().state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    assert (model.network.weights_source, model.trained) == ("timm test_resnet.r160_in1k", True)
    assert model.network.weights_file_sha256 == hashlib.sha256(data).hexdigest()
    asked = len(server.asked)
    assert sum(path.endswith("/model.safetensors") for path in server.asked) == 1
    _point_hub_at(monkeypatch, refusing_url())  # it is there now, so that no network is needed
    again = workflow.resolve(Request(model=TINY, weights="pretrained"))
    assert again.network is not None
    assert again.network.weights_sha256 == model.network.weights_sha256
    assert len(server.asked) == asked, server.asked
    (kept,) = own_hub.rglob("blobs/*")
    damaged = bytearray(kept.read_bytes())
    damaged[-3] ^= 1
    kept.write_bytes(damaged)
    with pytest.raises(BadWeights, match="the SHA-256 differs") as caught:
        workflow.resolve(Request(model=TINY, weights="pretrained"))
    assert str(kept) in (caught.value.fix or "")


@pytest.mark.parametrize("way", ["refused", "unknown host", "HTTP 404", "HTTP 503", "offline"])
def test_without_a_network_one_sentence_names_file_and_folder(
    way: str, server: Server, monkeypatch: pytest.MonkeyPatch, own_hub: Path
) -> None:
    url = {"refused": refusing_url(), "unknown host": "http://no-such-host.invalid"}.get(way, server.url)
    _point_hub_at(monkeypatch, url)
    if way == "offline":
        monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    if way == "HTTP 503":
        server.missing = 503
    with pytest.raises(NetworkUnavailable) as caught:
        workflow.resolve(Request(model=TINY, weights="pretrained"))
    message = caught.value.message
    assert message.startswith("can't download timm's weights of test_resnet.r160_in1k: there is no network, or ")
    assert f"{url}/timm/test_resnet.r160_in1k/resolve/main/model.safetensors" in message
    assert message.endswith(f"model.safetensors was looked for in {own_hub / 'models--timm--test_resnet.r160_in1k'}")
    assert "\n" not in message
    assert way in message or not way.startswith("HTTP")
    assert "--weights model.safetensors" in (caught.value.fix or "")


def test_torchvisions_weights_come_with_their_license(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from torchvision.models import RegNet_Y_400MF_Weights, regnet_y_400mf

    monkeypatch.setenv("RESNET_ONNX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    buffer = io.BytesIO()
    torch.save(regnet_y_400mf(weights=None).state_dict(), buffer)
    name = f"/regnet_y_400mf-{hashlib.sha256(buffer.getvalue()).hexdigest()[:8]}.pth"
    server.content[name] = buffer.getvalue()
    published = RegNet_Y_400MF_Weights.DEFAULT._value_
    monkeypatch.setattr(published, "url", server.url + name)
    monkeypatch.setitem(published.meta, "license", "https://github.com/facebookresearch/SWAG/blob/main/LICENSE")
    model = workflow.resolve(Request(model="torchvision:regnet_y_400mf", weights="pretrained"))
    assert model.network is not None
    assert model.network.weights_source == "torchvision RegNet_Y_400MF_Weights.IMAGENET1K_V2"
    assert model.network.weights_file_sha256 == hashlib.sha256(buffer.getvalue()).hexdigest()
    assert any("CC-BY-NC-4.0" in note and "no commercial use" in note for note in model.notes)


@pytest.mark.parametrize(
    ("license", "expected"),
    [("cc-by-nc-4.0", True), ("CC-BY-NC-SA-4.0", True), ("other (non-commercial)", True), ("apache-2.0", False),
     ("mit", False), ("ncsa", False), (None, False)],
)  # fmt: skip
def test_which_licenses_are_non_commercial(license: str | None, expected: bool) -> None:
    assert is_non_commercial(license) is expected


# ---- what the exporter can't do --------------------------------------------------------------------------------------


class _Unknown(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(x).mean((2, 3))


class _Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))


class _BoundToItsBatch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3)) if len(x) == 2 else x.amax((2, 3))


@pytest.mark.parametrize(
    ("module", "message", "fix"),
    [
        (_Unknown(), "as ONNX: operator prims.bessel_j0: ", None),
        (_Branching(), "as ONNX: Could not guard on data-dependent expression", None),
        (_BoundToItsBatch(), "as ONNX with an open batch: ", "a fixed batch works: --batch 2"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_can_t_be_exported_is_one_sentence(
    module: nn.Module, message: str, fix: str | None, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModel) as caught:
        torch_export.export(
            module.eval(), (torch.randn(2, 3, 8, 8),), tmp_path / "x.onnx", torch_export.ExportOptions(), {}
        )
    assert message in caught.value.message
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 500
    assert caught.value.fix == fix
    if fix is not None:
        torch_export.export(
            module.eval(), (torch.randn(2, 3, 8, 8),), tmp_path / "x.onnx", torch_export.ExportOptions(batch=2), {}
        )
        assert (tmp_path / "x.onnx").is_file()


def test_a_factory_that_fails_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    config = libraries.lookup("torchvision:resnet18").config
    with pytest.raises(UsageError, match="torchvision can't build resnet18 with 1000 classes and stochastic depth"):
        libraries.build_module(config, stochastic_depth=0.5)  # type: ignore[arg-type]
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("no such kernel")))
    tiny = libraries.lookup(TINY).config
    with pytest.raises(UsageError, match="timm can't build test_resnet with 1000 classes: no such kernel"):
        libraries.build_module(tiny)  # type: ignore[arg-type]
