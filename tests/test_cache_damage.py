"""No cache entry can change a verdict (PROMISES row 29): whatever bit of one flips, it is made anew, or told."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support import precision_models
from support.engine_builders import Builder, make_key
from support.onnx_models import small_conv
from support.quantised_models import quantised

from converters import lowering
from resnet_onnx import workflow
from resnet_onnx.bench import roofline, worker_process
from resnet_onnx.models import downloads
from resnet_onnx.models import weights as model_weights
from resnet_onnx.parity import running
from resnet_onnx.parity.records import Records
from resnet_onnx.results.document import Peaks
from resnet_onnx.workflow import Request, onnx_form
from resnet_onnx.workflow import weights as workflow_weights
from runtimes import engines, files, onnx_gate, ort_gpu
from runtimes.errors import ToolkitError
from runtimes.spec import ModelSource, Target

FAST, SLOW = 12, 200


@dataclass
class Kind:
    """A kind of entry: `use` makes or finds one and returns what the program then works with."""

    use: Callable[[], Any]
    made: list[str] = field(default_factory=list)


def gold(folder: Path, patch: pytest.MonkeyPatch) -> Kind:
    truth = [{"logits": np.array([[0.1, 0.2, 0.7]]), "half": np.ones(2, np.float16)}, {"logits": np.array([[3.0]])}]
    kind = Kind(lambda: plain(running.gold_outputs(target, batches, "key")))
    target = Target(runtime="reference", source=ModelSource(path=folder / "never.onnx"))
    batches = running.Batches(lambda: iter([{"x": np.zeros(1)}, {"x": np.ones(1)}]), [1, 1])

    def run(*_: object) -> running.Ran:
        kind.made.append("gold")
        return running.Ran(Records(truth))

    patch.setattr(running, "run", run)
    return kind


def plain(records: Records) -> Any:
    return [{name: (str(array.dtype), array.tolist()) for name, array in record.items()} for record in records]


def weights(folder: Path, patch: pytest.MonkeyPatch) -> Kind:
    sha = hashlib.sha256(b"weights").hexdigest()
    kind = Kind(lambda: use())

    def use() -> bytes:
        found = files.find_by_content("weights", ".safetensors", sha)
        if found is None:
            kind.made.append("weights")
            found, _ = files.store_by_content("weights", ".safetensors", lambda path: path.write_bytes(b"weights"))  # type: ignore[func-returns-value]
        return found.read_bytes()

    return kind


def random_weights(folder: Path, patch: pytest.MonkeyPatch) -> Kind:
    def use() -> tuple[bytes, str]:
        network, _ = workflow_weights.random_weights(Request(model="cifar-resnet20"))
        return network.weights.read_bytes(), network.weights_sha256

    kind = Kind(use)

    def make(*_: object, **__: object) -> dict[str, torch.Tensor]:
        kind.made.append("random")
        return {"w": torch.arange(4.0)}

    patch.setattr(model_weights, "random_state_dict", make)
    return kind


def exported(folder: Path, patch: pytest.MonkeyPatch) -> Kind:
    sound = small_conv(folder / "sound.onnx")
    model = workflow.resolve(Request(model="cifar-resnet20"))
    kind = Kind(lambda: onnx_gate.check_onnx(onnx_form.onnx_path(model)).sha256)

    def export(_: object, path: Path) -> None:
        kind.made.append("onnx")
        with onnx_gate.atomic_model(path, {"made_by": "a test"}) as draft:
            draft.write_bytes(sound.read_bytes())

    patch.setattr(onnx_form, "export", export)
    return kind


def lowered(folder: Path, patch: pytest.MonkeyPatch) -> Kind:
    checked = onnx_gate.check_onnx(quantised(precision_models.residual(folder / "net.onnx"), folder))

    def use() -> tuple[str, Any]:
        found = lowering.lowered_file(checked, "ort-cpu")
        assert found is not None
        kind.made.extend([] if found.cached else ["lowered"])
        return found.checked.sha256, found.changes

    kind = Kind(use)
    return kind


def engine(folder: Path, patch: pytest.MonkeyPatch) -> Kind:
    build = Builder()

    def use() -> Any:
        before = build.calls
        found = engines.find_or_build(make_key(), build)
        kind.made.extend(["engine"] * (build.calls - before))
        plan, record = engines.load_engine(found.path, trust=False)
        assert record is not None
        return plan, record.to_json()

    kind = Kind(use)
    return kind


def timings(folder: Path, patch: pytest.MonkeyPatch) -> Kind:
    def use() -> bytes:
        found = engines.load_timings("gpu")
        if not found:
            kind.made.append("timings")
            engines.store_timings("gpu", b"tactics")
        return found or b"tactics"

    kind = Kind(use)
    return kind


def peaks(folder: Path, patch: pytest.MonkeyPatch) -> Kind:
    import time

    measured = Peaks(gflops={"fp32": 400.0}, bandwidth_gbs=20.0, threads=1, measured_at=time.time(), undisturbed=True)

    class Worker:
        def __init__(self, _: str) -> None: ...
        def __enter__(self) -> Worker:
            return self

        def __exit__(self, *_: object) -> None: ...
        def call(self, *_: object, **__: object) -> Peaks:
            kind.made.append("peaks")
            return measured

    patch.setattr(worker_process, "WorkerProcess", Worker)
    kind = Kind(lambda: roofline.peaks(1))
    return kind


def download(folder: Path, patch: pytest.MonkeyPatch) -> Kind:
    content = b"published weights"
    name = f"resnet18-{hashlib.sha256(content).hexdigest()[:8]}.pth"

    def fetch(*, model_dir: str, **_: object) -> None:
        if not (path := Path(model_dir) / name).exists():
            kind.made.append("download")
            path.write_bytes(content)

    def read(path: Path) -> Any:
        seen.append(path.read_bytes())
        return Peaks(gflops={}, bandwidth_gbs=None)  # any dataclass will do

    seen: list[bytes] = []
    patch.setattr(
        "torchvision.models.get_weight",
        lambda _: SimpleNamespace(url=f"https://example.invalid/{name}", get_state_dict=fetch, meta={}),
    )
    patch.setattr(downloads, "read_weights_file", read)
    patch.setattr(downloads, "replace", lambda file, **_: file)
    patch.setattr(downloads, "fit", lambda *_: SimpleNamespace(state={}))

    def use() -> bytes:
        downloads.imagenet_weights(workflow_weights.entry_of(Request(model="resnet18")))
        return seen[-1]

    kind = Kind(use)
    return kind


def ort_engines(folder: Path, patch: pytest.MonkeyPatch) -> Kind:
    def use() -> bytes:
        with ort_gpu.engine_folder("key") as there:
            if not (there / "a.engine").exists():
                kind.made.append("engines")
                (there / "a.engine").write_bytes(b"engine")
            return (there / "a.engine").read_bytes()

    kind = Kind(use)
    return kind


KINDS = {
    "gold": gold,
    "weights": weights,
    "random": random_weights,
    "onnx": exported,
    "lowered": lowered,
    "engines": engine,
    "timings": timings,
    "peaks": peaks,
    "downloads": download,
    "ort-tensorrt": ort_engines,
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RESNET_ONNX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def entries(cache: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in sorted(cache.rglob("*")) if p.is_file() and "lock" not in p.name}


def try_flips(kind: Kind, cache: Path, flips: list[tuple[Path, int]], want: Any) -> int:
    """Uses an entry after each flip of one bit; returns how often it was not made anew nor refused in one sentence."""
    sound = entries(cache)
    unnoticed = 0
    for path, bit in flips:
        data = bytearray(sound[path])
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        kind.made.clear()
        try:
            found = kind.use()
        except ToolkitError:
            found, told = want, True
        else:
            told = False
        assert found == want, f"{path.name}, bit {bit}"
        unnoticed += not kind.made and not told
        for restored, content in sound.items():
            if not restored.exists() or restored.read_bytes() != content:
                restored.write_bytes(content)
    return unnoticed


def flipped(name: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    kind = KINDS[name](tmp_path, monkeypatch)
    want = kind.use()
    kind.made.clear()
    assert kind.use() == want
    assert not kind.made, "a sound entry was made again"
    bits = random.Random(0)
    there = list(entries(cache))
    flips = [(path := bits.choice(there), bits.randrange(8 * path.stat().st_size)) for _ in range(count)]
    unnoticed = try_flips(kind, cache, flips, want)
    if name not in ("onnx", "lowered", "random"):  # a manifest also says who made the file, which nobody reads
        assert unnoticed == 0


@pytest.mark.parametrize("name", KINDS)
def test_a_flipped_bit_is_found(name: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flipped(name, cache, tmp_path, monkeypatch, FAST)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_200_flipped_bits_are_found(name: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flipped(name, cache, tmp_path, monkeypatch, SLOW)


@pytest.mark.slow
def test_every_bit_of_a_gold_entry(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = gold(tmp_path, monkeypatch)
    want = kind.use()
    (path,) = entries(cache)
    assert try_flips(kind, cache, [(path, bit) for bit in range(8 * path.stat().st_size)], want) == 0


def test_a_note_on_random_weights_that_names_another_seed_is_not_believed(cache: Path) -> None:
    first, second = (workflow_weights.random_weights(Request(model="cifar-resnet20", seed=seed))[0] for seed in (1, 2))
    notes = {json.loads(files.read_sealed(note) or b"")["made_from"]["seed"]: note for note in cache.glob("random/*")}
    notes[1].write_bytes(notes[2].read_bytes())
    again, _ = workflow_weights.random_weights(Request(model="cifar-resnet20", seed=1))
    assert again.weights_sha256 == first.weights_sha256 != second.weights_sha256


@pytest.mark.parametrize("size", [0, 5, 31, 32])
def test_a_sealed_entry_that_is_cut_is_no_entry(tmp_path: Path, size: int) -> None:
    path = tmp_path / "entry"
    files.write_sealed(path, b"content")
    assert files.read_sealed(path) == b"content"
    path.write_bytes(path.read_bytes()[:size])
    assert files.read_sealed(path) is None
    assert not path.exists()
    files.write_sealed(path, b"")
    assert files.read_sealed(path) == b""
