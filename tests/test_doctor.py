"""``resnet-onnx doctor``: the machine, its runtimes, the cache."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from support.engine_builders import Builder, make_key
from support.gpus import A6000

from resnet_onnx.cli.main import main
from runtimes import cache as cache_contents
from runtimes import engines, environment, files, nvidia, ort_gpu, registry


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RESNET_ONNX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def doctor(capfd: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["doctor", *arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capfd.readouterr().out)
    return found


def doctor_text(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["doctor", *arguments]) == 0
    return capfd.readouterr().out


# ---- the machine


def test_every_runtime_is_listed_with_its_reason_and_fix(capfd: pytest.CaptureFixture[str]) -> None:
    found = doctor(capfd)
    assert [row["name"] for row in found["runtimes"]] == list(registry.runtime_names())
    for row in found["runtimes"]:
        if row["available"]:
            assert row["version"]
            assert row["devices"]
            assert row["reason"] is row["fix"] is None
        else:
            assert row["reason"]
            assert "pip install" in row["fix"] or "--device" in row["fix"]
    ready = {row["name"] for row in found["runtimes"] if row["available"]}
    assert {"torch", "reference", "ort-cpu", "openvino"} <= ready
    machine = found["machine"]
    assert machine["cpu"]["usable_cores"] >= 1
    assert machine["memory_bytes"] > 2**28
    assert machine["cpu"]["clock_mhz"] is None or machine["cpu"]["clock_mhz"] > 100
    assert set(machine["cpu"]["instruction_sets"]) <= set(environment._INTERESTING_FLAGS)
    assert found["gpu"] == machine["gpu"]
    assert bool(found["gpu"]["gpus"]) != bool(found["gpu"]["reason"])
    assert found["cache"] == str(files.cache_root())


def test_the_text_says_the_same(capfd: pytest.CaptureFixture[str]) -> None:
    found = doctor(capfd)
    said = doctor_text(capfd)
    assert f"{found['machine']['cpu']['usable_cores']} usable cores" in said
    for flag in found["machine"]["cpu"]["instruction_sets"]:
        assert flag in said
    for row in found["runtimes"]:
        (line,) = [text for text in said.splitlines() if text.split()[:1] == [row["name"]]]
        assert ("ready" if row["available"] else " no ") in line
        if not row["available"]:
            assert row["reason"] in line
            for step in row["fix"].splitlines():
                assert f"  {step}" in said


def test_gpus_are_shown_with_driver_clocks_and_temperature(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses

    second = dataclasses.replace(A6000, index=1)
    sensors = nvidia.Sensors(
        clock_mhz=1410, max_clock_mhz=2100, memory_clock_mhz=8001, power_limit_w=300.0, temperature_c=64,
        throttled=("thermal limit (hardware)",),
    )  # fmt: skip
    monkeypatch.setattr(nvidia, "gpus", lambda **words: (A6000, second))
    monkeypatch.setattr(nvidia, "read_sensors", lambda gpu: sensors if gpu.index == 0 else nvidia.Sensors())
    described = environment.describe_machine()["gpu"]
    assert [row["device"] for row in described["gpus"]] == ["cuda:0", "cuda:1"]
    assert described["gpus"][0]["clock_mhz"] == 1410
    # Only the look at the machine is under test: the stand-in has no driver that a runtime could use.
    monkeypatch.setattr(registry, "runtime_names", lambda: ("ort-cpu",))
    said = doctor_text(capfd)
    assert f"NVIDIA driver {A6000.driver}, CUDA up to {A6000.cuda[0]}.{A6000.cuda[1]}" in said
    (first,) = [line for line in said.splitlines() if line.split()[:1] == ["cuda:0"] and "held" not in line]
    assert first.split()[-5:] == ["1410", "2100", "8001", "300", "64"]
    assert A6000.name in first
    (other,) = [line for line in said.splitlines() if line.split()[:1] == ["cuda:1"]]
    assert other.split()[-5:] == ["–"] * 5
    assert "cuda:0 is held down: thermal limit (hardware)" in said


def test_torch_is_tried_on_the_gpu_too(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs on the CPU by default, so that its own row says nothing of the GPU that is here."""
    assert doctor(capfd)["on_cuda"] == []
    monkeypatch.setattr(nvidia, "gpus", lambda **words: (A6000,))
    monkeypatch.setattr(registry, "runtime_names", lambda: ("torch", "ort-cpu"))
    found = doctor(capfd)
    assert [(row["name"], row["available"]) for row in found["runtimes"]] == [("torch", True), ("ort-cpu", True)]
    (row,) = found["on_cuda"]
    assert (row["name"], row["available"]) == ("torch", False)
    assert "sees 0 GPUs" in row["reason"]
    said = doctor_text(capfd)
    assert "sees 0 GPUs" in said.partition("With --device cuda:")[2]


# ---- the cache


def fill(cache: Path) -> list[engines.Engine]:
    """Three engines, the first unused for longest, and something of two other kinds."""
    found = []
    for index, target in enumerate(("sm75", "sm86", "sm89")):
        entry = engines.find_or_build(make_key(target=target), Builder())
        os.utime(entry.path, (1000 + index, 1000 + index))
        found.append(entry)
    files.write_bytes(files.cache_dir("weights") / "w.safetensors", b"0" * 5000)
    files.write_bytes(files.cache_dir("onnx", "key") / "net.onnx", b"0" * 3000)
    files.write_bytes(files.cache_dir("something") / "new", b"0" * 10)
    return found


def test_the_cache_is_shown_by_kind_with_its_engines(capfd: pytest.CaptureFixture[str], cache: Path) -> None:
    entries = fill(cache)
    found = doctor(capfd, "--cache")
    kinds = {row["kind"]: row for row in found["kinds"]}
    assert list(kinds) == [*cache_contents.KINDS, "other"]
    assert (kinds["weights"]["files"], kinds["weights"]["size_bytes"]) == (1, 5000)
    assert (kinds["onnx"]["files"], kinds["onnx"]["size_bytes"]) == (1, 3000)
    assert kinds["other"]["size_bytes"] == 10
    assert kinds["downloads"]["files"] == 0
    on_disk = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
    assert found["size_bytes"] == sum(row["size_bytes"] for row in found["kinds"]) == on_disk
    assert [row["path"] for row in found["engines"]] == [str(entry.path) for entry in reversed(entries)]
    assert found["engines"][0]["target"] == "sm89"
    assert found["removed"] == []
    said = doctor_text(capfd, "--cache")
    assert "5.0 kB" in said
    assert all(target in said for target in ("sm75", "sm86", "sm89"))


def test_pruning_removes_what_was_unused_for_longest_and_says_so(
    capfd: pytest.CaptureFixture[str], cache: Path
) -> None:
    entries = fill(cache)
    size = entries[0].size_bytes
    said = doctor_text(capfd, "--prune", str(2 * size))
    assert "Removed 1 engine, " in said
    assert "sm75" in said.splitlines()[-1]
    assert [entry.path.exists() for entry in entries] == [False, True, True]
    assert doctor(capfd, "--prune", str(2 * size))["removed"] == []
    found = doctor(capfd, "--prune", "0")
    assert len(found["removed"]) == 2
    assert found["engines"] == []
    assert (cache / "weights" / "w.safetensors").exists()  # pruning is for engines


def test_pruning_counts_the_engines_of_onnx_runtime_too(cache: Path) -> None:
    with ort_gpu.engine_folder("ab" * 32) as folder:
        (folder / "x.engine").write_bytes(b"0" * 1000)
    entry = engines.find_or_build(make_key(), Builder())
    removed = cache_contents.prune(entry.size_bytes + 500)
    assert [row.size_bytes >= 1000 for row in removed] == [True]
    assert entry.path.exists()
    assert not folder.exists()


def test_an_empty_cache_is_no_problem(capfd: pytest.CaptureFixture[str], cache: Path) -> None:
    found = doctor(capfd, "--cache")
    assert (found["size_bytes"], found["engines"]) == (0, [])
    assert not cache.exists()
    assert doctor(capfd, "--prune", "1GB")["removed"] == []


def test_a_nonsense_size_is_a_usage_error(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--prune", "some", "--json"]) == 2
    assert "not a size like 500MB" in json.loads(capfd.readouterr().out)["error"]["message"]
