"""Checkpoints: what is written comes back, what is damaged is refused, and a kill or a full disk loses nothing."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.waiting import HANG_S

from resnet_onnx.models.catalog import lookup
from resnet_onnx.models.configs import with_classes
from resnet_onnx.training import checkpoint as module
from resnet_onnx.training.checkpoint import CheckpointContent, find_checkpoint, read_checkpoint, write_checkpoint
from resnet_onnx.training.recipes import lookup_recipe
from runtimes.errors import BadWeights, FileProblem, UserError

ENTRY = lookup("cifar-resnet8")
CONFIG = with_classes(ENTRY.config, 2)
RECIPE = lookup_recipe("digits").to_json()


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "conv1.weight": torch.randn(4, 3, 3, 3, generator=generator),
        "bn1.num_batches_tracked": torch.tensor(7),
        "half": torch.randn(5, generator=generator).to(torch.bfloat16),
    }


def write(folder: Path, seed: int = 0, **changes: Any) -> None:
    values: dict[str, Any] = {
        "name": ENTRY.name,
        "config": CONFIG,
        "preprocessing": ENTRY.preprocessing,
        "labels": ("cat", "Löwe"),
        "module_state": tensors(seed),
        "recipe": RECIPE,
        "epoch": 3,
        "metrics": {"validation_top1": 0.1 + 0.2, "nothing": None},
        "progress": {"history": [{"epoch": 1}]},
        "optimizer_state": {
            "state": {0: {"momentum_buffer": tensors(seed + 1)["conv1.weight"]}, 11: {"momentum_buffer": None}},
            "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99), "nesterov": True, "params": [0, 11]}],
        },
        "rng_state": {"cpu": torch.Generator().manual_seed(seed).get_state()},
    }
    write_checkpoint(folder, CheckpointContent(**(values | changes)))


def same(a: Any, b: Any) -> bool:
    """Equal in values, types and bits."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and a == b


def everything(folder: Path) -> dict[str, Any]:
    found = read_checkpoint(folder)
    return {
        "name": found.name,
        "config": found.config,
        "preprocessing": found.preprocessing,
        "labels": found.labels,
        "recipe": dict(found.recipe),
        "epoch": found.epoch,
        "metrics": dict(found.metrics),
        "progress": dict(found.progress),
        "module": dict(sorted(found.module_state().items())),
        "optimizer": found.optimizer_state(),
        "rng": found.rng_state(),
    }


def test_what_is_written_comes_back_bit_for_bit(tmp_path: Path) -> None:
    write(tmp_path / "c")
    found = everything(tmp_path / "c")
    assert (found["name"], found["config"], found["preprocessing"]) == (ENTRY.name, CONFIG, ENTRY.preprocessing)
    assert found["labels"] == ("cat", "Löwe")
    assert found["epoch"] == 3
    assert found["metrics"] == {"validation_top1": 0.1 + 0.2, "nothing": None}
    assert same(found["module"], dict(sorted(tensors().items())))
    assert same(found["rng"], {"cpu": torch.Generator().manual_seed(0).get_state()})
    optimizer = found["optimizer"]
    assert same(optimizer["state"][0]["momentum_buffer"], tensors(1)["conv1.weight"])
    assert optimizer["state"][11] == {"momentum_buffer": None}
    assert optimizer["param_groups"] == [{"lr": 0.1, "betas": (0.9, 0.99), "nesterov": True, "params": [0, 11]}]


def test_the_network_of_a_checkpoint_says_where_it_comes_from(tmp_path: Path) -> None:
    write(tmp_path / "c")
    network = read_checkpoint(tmp_path / "c").network()
    assert network.weights == tmp_path / "c" / "model.safetensors"
    assert network.labels == ("cat", "Löwe")
    assert network.trained
    assert "epoch 3" in network.weights_source


@pytest.mark.parametrize("name", ["../../models/net", "/tmp/net", "a/b", "", ".hidden", "a\\b", "x" * 200])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    """Files in the cache are named after the network, and a checkpoint may come from anywhere."""
    write(tmp_path / "c", name=name)
    with pytest.raises(UserError, match="is not a name of a network"):
        read_checkpoint(tmp_path / "c").network()


def test_no_file_is_a_pickle(tmp_path: Path) -> None:
    write(tmp_path / "c")
    for path in (tmp_path / "c").iterdir():
        assert path.suffix in (".json", ".safetensors")
        with pytest.raises((pickle.UnpicklingError, ValueError, EOFError, KeyError, IndexError, AttributeError)):
            pickle.loads(path.read_bytes())


def test_100_damages_are_refused_by_name_or_change_nothing(tmp_path: Path) -> None:
    write(tmp_path / "good")
    before = everything(tmp_path / "good")
    names = sorted(path.name for path in (tmp_path / "good").iterdir())
    assert names == ["checkpoint.json", "model.safetensors", "optimizer.safetensors", "rng.safetensors"]
    rng = random.Random(0)
    refused = harmless = unnamed = 0
    for i in range(100):
        folder = tmp_path / "damaged"
        shutil.copytree(tmp_path / "good", folder)
        path = folder / names[i % 4]
        data = bytearray(path.read_bytes())
        offset = rng.randrange(len(data))
        if i % 8 < 4:
            data[offset] ^= 1 << rng.randrange(8)
        else:
            del data[offset:]
        path.write_bytes(data)
        try:
            after = everything(folder)
        except BadWeights as error:
            refused += 1
            unnamed += path.name not in error.message
        else:
            assert same(after, before), f"{path.name}, offset {offset}"
            harmless += 1
        shutil.rmtree(folder)
    assert refused >= 85  # what is left is white space and the tool's version in the record
    assert (refused + harmless, unnamed) == (100, 0)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (b"", "damaged"),
        (b"\xff\xfe", "damaged"),
        (b"[" * 100_000, "damaged"),
        (b"[]", "not the record of a checkpoint made here"),
        (b'{"epoch": 3}', "not the record of a checkpoint made here"),
        (b'{"format": "resnet-onnx checkpoint", "version": 2}', "reads version 1"),
        (b'{"format": "resnet-onnx checkpoint", "version": 1, "content": {}}', "SHA-256"),
    ],
)
def test_a_foreign_record_is_refused(tmp_path: Path, record: bytes, message: str) -> None:
    (tmp_path / "checkpoint.json").write_bytes(record)
    with pytest.raises(BadWeights, match=message):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["files"].update({"../escape": c["files"]["model.safetensors"]}), "lists"),
        (lambda c: c["files"].pop("model.safetensors"), "expected model.safetensors"),
        (lambda c: c["network"]["config"].update(block="magic"), "incomplete"),
        (lambda c: c["network"].pop("preprocessing"), "incomplete"),
        (lambda c: c.update(epoch="many"), "incomplete"),
        (lambda c: c.update(files=[]), "incomplete"),
    ],
)
def test_a_consistent_record_with_nonsense_in_it_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    write(tmp_path / "c")
    path = tmp_path / "c" / "checkpoint.json"
    record = json.loads(path.read_text())
    change(record["content"])
    record["sha256"] = module._digest(record["content"])
    path.write_text(json.dumps(record))
    with pytest.raises(BadWeights, match=message):
        read_checkpoint(tmp_path / "c")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    write(tmp_path / "c")
    (tmp_path / "c" / "optimizer.safetensors").unlink()
    with pytest.raises(BadWeights, match=r"optimizer\.safetensors"):
        read_checkpoint(tmp_path / "c")


def test_a_file_changed_after_the_check_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "c")
    found = read_checkpoint(tmp_path / "c")
    write(tmp_path / "other", seed=5)
    shutil.copy(tmp_path / "other" / "model.safetensors", tmp_path / "c" / "model.safetensors")
    with pytest.raises(BadWeights, match="changed while it was being read"):
        found.module_state()


def test_weights_alone_can_be_used_but_not_resumed_from(tmp_path: Path) -> None:
    write(tmp_path / "c", optimizer_state=None, rng_state=None)
    found = read_checkpoint(tmp_path / "c")
    assert not found.resumable
    assert same(dict(sorted(found.module_state().items())), dict(sorted(tensors().items())))
    with pytest.raises(BadWeights, match="for use, not for training on"):
        found.optimizer_state()


def test_find_checkpoint_takes_the_folder_itself_then_best_then_last(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(out / "last")
    assert find_checkpoint(out) == out / "last"
    write(out / "best")
    assert find_checkpoint(out) == out / "best"
    assert find_checkpoint(out / "last") == out / "last"
    with pytest.raises(BadWeights, match="no such folder"):
        find_checkpoint(tmp_path / "absent")
    with pytest.raises(BadWeights, match="is a file"):
        find_checkpoint(out / "best" / "model.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadWeights, match=r"is not a checkpoint: expected checkpoint\.json") as caught:
        find_checkpoint(tmp_path / "empty")
    assert "train --out" in str(caught.value.fix)


def test_a_checkpoint_with_infinite_figures_is_not_written(tmp_path: Path) -> None:
    write(tmp_path / "c")
    before = everything(tmp_path / "c")
    with pytest.raises(ValueError, match="Out of range float"):
        write(tmp_path / "c", seed=9, metrics={"loss": float("nan")})
    assert same(everything(tmp_path / "c"), before)


def test_a_file_in_the_way_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "c").write_text("mine")
    with pytest.raises(FileProblem, match="can't write"):
        write(tmp_path / "c")
    assert (tmp_path / "c").read_text() == "mine"


FAULTS = """
import os, random, resource, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_checkpoint import everything, same, write
from runtimes.errors import FileProblem

root = Path(sys.argv[2])
a, b = root / "a", root / "b"
write(a, seed=0), write(b, seed=1)
good = [everything(a), everything(b)]

# a full disk, or a limit, in the middle of saving
write(root / "c", seed=0)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limits = resource.getrlimit(resource.RLIMIT_FSIZE)
for limit in (1, 300, 2000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        write(root / "c", seed=1)
    except FileProblem as problem:
        print("limit", problem.message)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert same(everything(root / "c"), good[0])
    assert [p.name for p in root.iterdir() if p.name.startswith(".c")] == []

# kill -9 at random moments of saving
rng = random.Random(0)
seen = set()
for _ in range(50):
    child = os.fork()
    if child == 0:
        while True:
            write(root / "c", seed=1)
            write(root / "c", seed=0)
    time.sleep(0.02 + rng.random() * 0.08)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    found = everything(root / "c")
    which = [same(found, g) for g in good]
    assert sum(which) == 1, "neither the old nor the new"
    seen.add(which.index(True))
print("killed", sorted(seen))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_FSIZE and fork as on Linux")
def test_a_full_disk_or_kill_9_while_saving_leaves_the_old_or_the_new_checkpoint(tmp_path: Path) -> None:
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, str(here), str(tmp_path)],
        cwd=here.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("limit can't write") == 3
    assert "killed [" in done.stdout


def test_labels_that_do_not_fit_are_refused_when_the_network_is_made(tmp_path: Path) -> None:
    write(tmp_path / "c", config=replace(CONFIG, num_classes=3))
    with pytest.raises(Exception, match="3 outputs, but 2 labels"):
        read_checkpoint(tmp_path / "c").network()
