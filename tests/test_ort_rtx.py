"""ONNX Runtime with the plugin of TensorRT for RTX, on stand-ins for both: nothing loads the plugin or a GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from support.gpus import A6000
from support.onnx_models import small_conv

from runtimes import files, nvidia, ort_gpu, ort_rtx, registry
from runtimes.errors import BadFeeds, RuntimeUnavailable, UnsupportedModel
from runtimes.ort_rtx import OrtTensorRTRTXRuntime
from runtimes.spec import ModelSource, RuntimeOptions, ShapeRange

PROVIDER = OrtTensorRTRTXRuntime.provider
SHAPES = {"x": ShapeRange((1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8)), "y": ShapeRange((1,), (1,), (1,))}


class Plugin:
    """onnxruntime_ep_nv_tensorrt_rtx and what ONNX Runtime has of it once it is registered."""

    __version__ = "0.5.0"

    def __init__(self) -> None:
        self.devices: list[Any] = []
        self.registered: list[tuple[str, str]] = []
        self.refusal = ""
        self.told: list[tuple[Any, dict[str, str]]] = []

    def get_ep_name(self) -> str:
        return PROVIDER

    def get_library_path(self) -> str:
        return "/wheel/libonnxruntime_providers_nv_tensorrt_rtx.so"

    def register(self, name: str, path: str) -> None:
        if self.refusal:
            raise RuntimeError(self.refusal)
        self.registered.append((name, path))
        self.devices = [SimpleNamespace(ep_name="CPUExecutionProvider"), SimpleNamespace(ep_name=PROVIDER)]


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plugin:
    found = Plugin()
    real, load = onnxruntime.InferenceSession, ort_rtx.load_library

    class Settings(onnxruntime.SessionOptions):  # type: ignore[misc]
        def add_provider_for_devices(self, devices: Any, options: Any) -> None:
            found.told.append((devices, options))

        def add_session_config_entry(self, name: str, value: str) -> None:
            if name != "session.disable_cpu_ep_fallback":
                super().add_session_config_entry(name, value)

    class Session:
        def __init__(self, path: str, settings: Any) -> None:
            self.inner = real(path, providers=["CPUExecutionProvider"])
            Path(found.told[-1][1]["nv_runtime_cache_path"], "kernels.bin").write_bytes(b"kernels")

        def run(self, *arguments: Any) -> Any:
            return self.inner.run(*arguments)

        def get_providers(self) -> list[str]:
            return [PROVIDER]

        def get_provider_graph_assignment_info(self) -> list[Any]:
            nodes = [SimpleNamespace(name="conv1", op_type="Conv")]
            return [SimpleNamespace(ep_name=PROVIDER, get_nodes=lambda: nodes)]

    monkeypatch.setenv("RESNET_ONNX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(nvidia, "gpus", lambda **words: (A6000,))
    monkeypatch.setattr(
        ort_rtx, "load_library", lambda name, **words: found if "nv_tensorrt" in name else load(name, **words)
    )
    monkeypatch.setattr(ort_rtx, "package_version", lambda *names: None if names == ("onnxruntime-gpu",) else "0.5.0")
    monkeypatch.setattr(onnxruntime, "get_ep_devices", lambda: found.devices)
    monkeypatch.setattr(onnxruntime, "register_execution_provider_library", found.register)
    monkeypatch.setattr(onnxruntime, "SessionOptions", Settings)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    return found


def test_it_registers_once_tells_the_plugin_its_options_and_keeps_kernels_sealed(
    plugin: Plugin, tmp_path: Path
) -> None:
    assert registry.probe("ort-tensorrt-rtx").available
    source = ModelSource(path=small_conv(tmp_path / "net.onnx"))
    shapes = {"x": SHAPES["x"]}
    feeds = {"x": np.ones((2, 3, 8, 8), np.float32)}
    options = RuntimeOptions(shapes=shapes, streams=2)
    with registry.open_runtime("ort-tensorrt-rtx", source, options=options) as runtime:
        assert plugin.registered == [(PROVIDER, plugin.get_library_path())]
        (devices, told), _ = plugin.told
        assert [device.ep_name for device in devices] == [PROVIDER]
        assert told["nv_profile_max_shapes"] == "x:4x3x8x8"
        folder = Path(told["nv_runtime_cache_path"])
        assert folder == files.cache_root() / "ort-tensorrt" / runtime.recorded["engine"]
        assert ort_gpu.is_sealed(folder)
        with runtime.prepare(feeds, scope="end-to-end") as prepared:
            prepared.enqueue()
            np.testing.assert_array_equal(prepared.outputs()["y"], runtime.run(feeds)["y"])
        with pytest.raises(UnsupportedModel, match="from host arrays to host arrays"):
            runtime.prepare(feeds, scope="device")
        with pytest.raises(BadFeeds, match="up to 4×3×8×8"):
            runtime.run({"x": np.ones((5, 3, 8, 8), np.float32)})
    assert ort_rtx.plugin_options(RuntimeOptions(shapes=SHAPES))["nv_profile_min_shapes"] == "x:1x3x8x8;y:1"
    assert ort_rtx.plugin_options(RuntimeOptions()) == {}


def test_what_is_missing_is_told_in_turn(plugin: Plugin, monkeypatch: pytest.MonkeyPatch) -> None:
    def reason() -> str:
        answer = registry.probe("ort-tensorrt-rtx")
        assert not answer.available
        return f"{answer.reason} {answer.fix}"

    plugin.register = lambda name, path: None  # type: ignore[method-assign]
    monkeypatch.setattr(onnxruntime, "register_execution_provider_library", plugin.register)
    assert "sees 0 GPUs that it supports, and so no cuda:0" in reason()
    plugin.refusal = "libcuda.so.1: cannot open shared object file"
    monkeypatch.setattr(onnxruntime, "register_execution_provider_library", lambda *_: Plugin.register(plugin, *_))
    assert "0.5.0: libcuda.so.1: cannot open" in reason()
    monkeypatch.setattr(ort_rtx, "package_version", lambda *names: "1.31.1")
    assert "onnxruntime-gpu is installed in an environment of its own: pip install" in reason()
    monkeypatch.setattr(nvidia, "gpus", lambda **words: (replace(A6000, compute_capability=(7, 5)),))
    assert "from Ampere (8.0) on" in reason()
    with pytest.raises(RuntimeUnavailable):
        registry.require("ort-tensorrt-rtx")
