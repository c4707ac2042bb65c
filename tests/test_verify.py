"""verify: ten ways in which deployments go wrong, each sealed again and each found; and bundles that mean harm."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import bundles

from resnet_onnx.cli.main import main
from resnet_onnx.deploy.standalone import verify as standalone
from resnet_onnx.deploy.verification import VerifyPlan, verify_bundle
from resnet_onnx.results.bundle import Check, Figures, Verify
from resnet_onnx.workflow import Model
from runtimes.errors import BadData, BadModel, UsageError


@pytest.fixture(scope="module")
def model() -> Model:
    return bundles.network()


@pytest.fixture(scope="module")
def sound(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that promises no speed, so that none is measured."""
    folder = tmp_path_factory.mktemp("verify") / "bundle"
    bundles.write(model, folder, figures=Figures())
    return folder


@pytest.fixture
def copy(sound: Path, tmp_path: Path) -> Path:
    shutil.copytree(sound, tmp_path / "bundle")
    return tmp_path / "bundle"


def check(found: Verify, name: str) -> Check:
    return next(each for each in found.checks if each.name == name)


def scale_a_weight(folder: Path) -> None:
    import onnx
    from onnx import numpy_helper

    changed = onnx.load(str(folder / "model.onnx"))
    tensor = next(t for t in changed.graph.initializer if len(t.dims) == 4)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.05), tensor.name))
    onnx.save(changed, folder / "model.onnx")
    bundles.reseal(folder)


def set_preprocessing(name: str, value: object) -> Callable[[Path], None]:
    return lambda folder: bundles.edit(folder, lambda about: about["preprocessing"].update({name: value}))


def shift_labels(folder: Path) -> None:
    bundles.edit(folder, lambda about: about["labels"].insert(0, about["labels"].pop()))


def lose_gold(folder: Path) -> None:
    (folder / "proof" / "gold.npy").unlink()
    bundles.reseal(folder)


WRONG: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "another file": (scale_a_weight, "outputs", "from gold, budget"),
    "wrong mean": (set_preprocessing("mean", [0.5, 0.5, 0.5]), "preprocessing", "mean or std: [0.5, 0.5, 0.5]"),
    "BGR": (set_preprocessing("channels", "BGR"), "preprocessing", "the channels are in the order BGR"),
    "another filter": (set_preprocessing("interpolation", "bicubic"), "preprocessing", "resize or decoding: up to"),
    "another size": (set_preprocessing("resize", 40), "preprocessing", "resize or decoding: up to"),
    "labels shifted": (shift_labels, "labels", "the labels are shifted by one"),
    "a missing file": (lose_gold, "files", "proof/gold.npy"),
}


def test_a_sound_bundle_passes(sound: Path) -> None:
    found = verify_bundle(sound, VerifyPlan())
    assert found.passed
    assert {each.name: each.verdict for each in found.checks} == {
        "files": "pass", "runner": "pass", "libraries": "pass", "machine": "pass", "preprocessing": "pass",
        "labels": "pass", "outputs": "pass", "decisions": "pass", "speed": "skipped",
    }  # fmt: skip


@pytest.mark.parametrize("how", WRONG)
def test_what_goes_wrong_is_found_though_every_hash_is_right(copy: Path, how: str) -> None:
    change, name, said = WRONG[how]
    change(copy)
    found = verify_bundle(copy, VerifyPlan())
    assert not found.passed
    assert check(found, name).verdict == "fail"
    assert said in check(found, name).detail


def test_a_library_that_computes_differently_is_found(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "fake" / "onnxruntime.py"
    fake.parent.mkdir()
    fake.write_text(
        "import importlib, sys\n"
        f"sys.path[:] = [p for p in sys.path if p != {str(fake.parent)!r}]\n"
        "del sys.modules['onnxruntime']\n"
        "real = importlib.import_module('onnxruntime')\n"
        "class InferenceSession(real.InferenceSession):\n"
        "    def run(self, *given, **more):\n"
        "        return [array * 1.01 for array in super().run(*given, **more)]\n"
        "real.InferenceSession = InferenceSession\n"
        "sys.modules['onnxruntime'] = real\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(fake.parent), os.environ.get("PYTHONPATH", "")]))
    found = verify_bundle(copy, VerifyPlan())
    assert check(found, "outputs").verdict == "fail"
    assert "1.0e-02 from gold" in check(found, "outputs").detail


def promise(folder: Path, over_reference: float) -> None:
    bundles.edit(folder, lambda about: about["figures"].update(over_reference=over_reference))


def test_a_slower_form_than_the_promised_one_is_found(copy: Path) -> None:
    promise(copy, 50.0)
    noted = verify_bundle(copy, VerifyPlan(seconds=0.5))
    assert noted.passed
    assert check(noted, "speed").verdict == "note"
    assert "below the promise" in check(noted, "speed").detail
    assert noted.speed.measured is not None
    assert noted.speed.ratio == pytest.approx(noted.speed.measured / 50)
    failed = verify_bundle(copy, VerifyPlan(seconds=0.5, min_speed=0.8))
    assert not failed.passed
    assert "0.8 was asked" in check(failed, "speed").detail


def test_a_limit_of_the_time_of_a_run_is_judged(copy: Path) -> None:
    promise(copy, 0.001)
    met = verify_bundle(copy, VerifyPlan(seconds=0.5, p99_ms=60_000))
    assert check(met, "speed").verdict == "pass"
    assert met.speed.latency_ms is not None
    assert met.speed.latency_ms.p99 is not None
    broken = verify_bundle(copy, VerifyPlan(seconds=0.5, p99_ms=1e-3))
    assert check(broken, "speed").verdict == "fail"


def test_half_the_cores_and_a_lesser_processor_are_said(copy: Path) -> None:
    def on_another(about: dict[str, Any]) -> None:
        about["machine"]["cpu"].update(usable_cores=2 * standalone.usable_cores())
        about["machine"]["cpu"]["instruction_sets"].append("amx_fp64")
        about["figures"].update(over_reference=50.0)

    bundles.edit(copy, on_another)
    found = verify_bundle(copy, VerifyPlan(seconds=0.5))
    cores = standalone.usable_cores()
    assert check(found, "machine").verdict == "note"
    assert check(found, "machine").detail == f"{cores} of the {2 * cores} cores; no amx_fp64"
    assert f"this machine has {cores} of the {2 * cores} cores and no amx_fp64" in check(found, "speed").detail


@pytest.mark.parametrize(
    ("here", "verdict", "said"),
    [
        (None, "fail", "an engine for a GPU (sm89), and this machine has no NVIDIA driver"),
        ("sm90", "fail", "an engine of another GPU: made for sm89, this one is sm90"),
        ("sm89", "skipped", "--trust-engine opens it"),
    ],
)
def test_an_engine_of_another_gpu_is_found_before_it_is_opened(
    copy: Path, monkeypatch: pytest.MonkeyPatch, here: str | None, verdict: str, said: str
) -> None:
    def to_engine(about: dict[str, Any]) -> None:
        about["model"].update(form="engine")
        about["settings"].update(device="cuda:0", recorded={"target": "sm89"})

    bundles.edit(copy, to_engine)
    monkeypatch.setattr(standalone, "gpu_target", lambda: here)
    monkeypatch.setattr(standalone.Verification, "libraries", lambda self: ("pass", ""))
    found = standalone.Verification(copy, argparse.Namespace(trust_engine=False, sha256=None)).run()
    rows = {each["name"]: each for each in found["checks"]}
    assert rows["engine"]["verdict"] == verdict
    assert said in rows["engine"]["detail"]
    assert rows["outputs"] == {"name": "outputs", "verdict": "skipped", "detail": "the engine is not opened"}


def test_the_bundles_own_program_finds_the_same(copy: Path) -> None:
    promise(copy, 0.001)
    ours = verify_bundle(copy, VerifyPlan(seconds=0.3))
    away = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, str(copy / "verify.py"), "--json", "--seconds", "0.3"]
    done = subprocess.run(command, capture_output=True, text=True, env=away, check=True)
    theirs = json.loads(done.stdout)
    assert [(c["name"], c["verdict"]) for c in theirs["checks"]] == [
        (c.name, c.verdict) for c in ours.checks if c.name != "runner"
    ]


def test_a_pinned_seal(copy: Path) -> None:
    digest = verify_bundle(copy, VerifyPlan()).sha256
    assert verify_bundle(copy, VerifyPlan(sha256=digest.upper())).passed
    shift_labels(copy)
    found = verify_bundle(copy, VerifyPlan(sha256=digest))
    assert f"{digest[:12]}… was asked" in check(found, "files").detail
    with pytest.raises(UsageError, match="64 hexadecimal digits"):
        VerifyPlan(sha256="abc")


def test_nothing_of_the_bundle_is_executed(copy: Path, tmp_path: Path) -> None:
    for name in ("run.py", "engine.py", "verify.py", "picture_tensor.py"):
        (copy / name).write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\n")
    (copy / "numpy.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\n")
    bundles.reseal(copy)
    found = verify_bundle(copy, VerifyPlan())
    assert not (tmp_path / "executed").exists()
    assert check(found, "runner").verdict == "fail"
    assert (
        "run.py, verify.py, picture_tensor.py, engine.py: not as this program writes it"
        in check(found, "runner").detail
    )
    assert check(found, "outputs").verdict == "pass"


def outside(folder: Path) -> None:
    bundles.edit(folder, lambda about: about["model"].update(file="../../etc/passwd"))


def linked(folder: Path) -> None:
    (folder / "README.md").unlink()
    (folder / "README.md").symlink_to("/etc/hostname")


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "pipe")


def huge(folder: Path) -> None:
    with open(folder / "README.md", "wb") as handle:
        handle.truncate(10 * 2**30)


def huge_document(folder: Path) -> None:
    with open(folder / "bundle.json", "ab") as handle:
        handle.truncate(2**30)


def bomb(folder: Path) -> None:
    np.savez_compressed(folder / "proof" / "tensors.npz", levels=np.zeros((32, 3, 512, 512), np.uint8))
    bundles.reseal(folder)


def cut_off(folder: Path) -> None:
    path = folder / "bundle.json"
    path.write_bytes(path.read_bytes()[:-40])


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a path out of it": (outside, "lies outside of the bundle"),
    "an absolute path": (
        lambda folder: bundles.edit(folder, lambda about: about["model"].update(portable="/etc/passwd")),
        "lies outside of the bundle",
    ),
    "a link": (linked, "a link in a bundle"),
    "a pipe": (pipe, "a pipe, socket or device in a bundle"),
    "a huge file": (huge, "10,737,418,240 bytes, and the bundle says"),
    "a huge document": (huge_document, "expected a bundle.json of at most 64 MiB"),
    "a zip bomb": (bomb, "unpacked, and pictures of 32×32 need"),
    "a wrong type": (
        lambda folder: bundles.edit(folder, lambda about: about.update(labels=7)),
        "not a complete bundle.json",
    ),
    "a billion threads": (
        lambda folder: bundles.edit(folder, lambda about: about["settings"].update(threads=10**9)),
        "not a complete bundle.json",
    ),
    "damaged JSON": (cut_off, "not complete JSON"),
    "another runtime": (
        lambda folder: bundles.edit(folder, lambda about: about.update(runtime="os.system")),
        "no runtime 'os.system'",
    ),
    "no bundle": (lambda folder: (folder / "bundle.json").unlink(), "not a bundle, there is no bundle.json"),
}  # fmt: skip


@pytest.mark.parametrize("how", HOSTILE)
def test_a_bundle_that_means_harm_is_one_sentence(copy: Path, how: str) -> None:
    change, said = HOSTILE[how]
    change(copy)
    with pytest.raises(BadData) as refused:
        verify_bundle(copy, VerifyPlan())
    assert said in refused.value.message
    assert len(refused.value.message) < 400


def test_a_graph_passes_the_gate_first(copy: Path) -> None:
    (copy / "model.onnx").write_bytes(b"\x08\x07no model")
    bundles.reseal(copy)
    with pytest.raises(BadModel):
        verify_bundle(copy, VerifyPlan())


def test_exit_codes_and_the_document(copy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(copy), "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["kind"], found["passed"]) == ("verify", True)
    assert set(found["checks"][0]) == {"name", "verdict", "detail"}
    assert set(found["speed"]) >= {"promised", "measured", "ratio"}
    shift_labels(copy)
    assert main(["verify", str(copy)]) == 1
    assert "the labels are shifted by one" in capfd.readouterr().out
    assert main(["verify", str(copy / "nothing")]) == 2
    assert "make one: resnet-onnx bundle" in capfd.readouterr().err
