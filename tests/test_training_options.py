"""What a recipe can add to a training: averages, mixing, plateaus, frozen layers, pictures left out; and its limits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.training_runs import SMALL, small_net, small_run, state_bytes, without_times
from support.waiting import HANG_S, wait_for_path

from resnet_onnx.models.preprocessing import Preprocessing
from resnet_onnx.training.augmentation import (
    COLOUR_VALUES,
    COLOUR_VECTORS,
    Shard,
    colour_shift,
    mix,
    random_scaled_crop,
)
from resnet_onnx.training.checkpoint import read_checkpoint
from resnet_onnx.training.device import select_device
from resnet_onnx.training.distributed import ProcessGroup
from resnet_onnx.training.plan import Progress
from resnet_onnx.training.recipes import lookup_recipe
from resnet_onnx.training.splits import open_training_data
from resnet_onnx.training.step import TrainState
from runtimes.errors import BadData, RuntimeUnavailable, UsageError

ROOT = Path(__file__).resolve().parent.parent


def interrupt_in_epoch_2(progress: Progress) -> None:
    if (progress.epoch, progress.step) == (2, 2):
        raise KeyboardInterrupt


# ---- moving average of the weights -----------------------------------------------------------------------------------


def test_the_kept_weights_are_the_moving_average_of_the_trained_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[dict[str, torch.Tensor]] = []
    step = TrainState.step

    def spy(self: Any, *args: Any) -> Any:
        found = step(self, *args)
        trained.append({name: value.detach().clone() for name, value in self.module.named_parameters()})
        return found

    monkeypatch.setattr(TrainState, "step", spy)
    result = small_run(tmp_path / "run", SMALL.override(ema=0.5))
    kept = read_checkpoint(result.last).module_state()
    average = dict(trained[0])
    for count, weights in enumerate(trained[1:], start=1):
        decay = min(0.5, (1 + count) / (10 + count))
        average = {name: decay * value + (1 - decay) * weights[name] for name, value in average.items()}
    assert len(trained) == 9
    for name, value in average.items():
        torch.testing.assert_close(kept[name], value, rtol=1e-5, atol=1e-6)
        assert not torch.equal(kept[name], trained[-1][name])


def test_a_run_with_a_moving_average_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    recipe = SMALL.override(ema=0.9)
    with pytest.raises(KeyboardInterrupt):
        small_run(tmp_path / "stopped", recipe, progress=interrupt_in_epoch_2)
    small_run(tmp_path / "stopped", recipe, resume=True)
    small_run(tmp_path / "whole", recipe)
    assert state_bytes(tmp_path / "stopped") == state_bytes(tmp_path / "whole")


# ---- mixing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mixup", "cutmix"), [(1.0, 0.0), (0.0, 1.0), (0.7, 0.7)])
def test_mixed_targets_are_the_shares_of_the_mixed_pictures(mixup: float, cutmix: float) -> None:
    recipe = SMALL.override(mixup=mixup, cutmix=cutmix)
    labels = torch.arange(12) % 4
    pictures = labels.view(-1, 1, 1, 1).expand(-1, 3, 10, 10).float()  # every pixel of class c is c
    cut = blended = 0
    for seed in range(30):
        inputs, shares = mix(pictures, labels, classes=4, recipe=recipe, seed=seed)
        assert (inputs.shape, shares.shape) == (pictures.shape, (12, 4))
        torch.testing.assert_close(shares.sum(1), torch.ones(12))
        torch.testing.assert_close(inputs.mean((1, 2, 3)), shares @ torch.arange(4.0), rtol=1e-4, atol=1e-4)
        mixed = not torch.equal(inputs, pictures)  # a draw may leave (almost) everything to one picture
        pure = bool((inputs == inputs.round()).all())
        cut, blended = cut + (mixed and pure), blended + (mixed and not pure)
    assert (cut > 5, blended > 5) == (cutmix > 0, mixup > 0)


def test_mixing_changes_the_training_and_is_repeatable(tmp_path: Path) -> None:
    recipe = SMALL.override(mixup=0.4, cutmix=1.0)
    first, second = small_run(tmp_path / "a", recipe), small_run(tmp_path / "b", recipe)
    plain = small_run(tmp_path / "c", SMALL)
    assert without_times(first.epochs) == without_times(second.epochs)
    assert state_bytes(tmp_path / "a") == state_bytes(tmp_path / "b")
    assert first.epochs[0]["train_loss"] != plain.epochs[0]["train_loss"]
    with pytest.raises(KeyboardInterrupt):
        small_run(tmp_path / "d", recipe, progress=interrupt_in_epoch_2)
    small_run(tmp_path / "d", recipe, resume=True)
    assert state_bytes(tmp_path / "d") == state_bytes(tmp_path / "a")


# ---- plateaus --------------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from([0.5, 0.49999, 0.4, 0.3, 0.6]), max_size=30), st.integers(0, 4))
def test_plateaus_are_those_of_torch(errors: list[float], patience: int) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=patience, eps=0.0)
    for error in errors:
        scheduler.step(error)
    recipe = lookup_recipe("imagenet-paper").override(patience=patience)
    assert optimizer.param_groups[0]["lr"] == 0.5 ** recipe.plateaus(errors)


def test_the_learning_rate_falls_after_a_plateau_also_when_resumed(tmp_path: Path) -> None:
    recipe = SMALL.override(schedule="plateau", warmup=0.0, patience=1, epochs=8, decay=0.1)
    result = small_run(tmp_path / "whole", recipe)
    errors = [1 - row["validation_top1"] for row in result.epochs]
    expected = [0.1 * 0.1 ** recipe.plateaus(errors[:epoch]) for epoch in range(8)]
    assert [row["learning_rate"] for row in result.epochs] == pytest.approx(expected)
    assert expected[-1] < expected[0]
    with pytest.raises(KeyboardInterrupt):
        small_run(tmp_path / "stopped", recipe, progress=interrupt_in_epoch_2)
    small_run(tmp_path / "stopped", recipe, resume=True)
    assert state_bytes(tmp_path / "stopped") == state_bytes(tmp_path / "whole")


# ---- frozen layers ---------------------------------------------------------------------------------------------------


def test_frozen_layers_and_their_statistics_keep_every_bit(tmp_path: Path) -> None:
    before = read_checkpoint(small_run(tmp_path / "first", SMALL.override(epochs=1)).last).module_state()
    recipe = SMALL.override(epochs=2, freeze=("conv1", "bn1", "layer1"))
    after = read_checkpoint(small_run(tmp_path / "second", recipe, initial_state=before).last).module_state()
    frozen = [name for name in before if name.split(".")[0] in ("conv1", "bn1", "layer1")]
    assert {"bn1.running_mean", "bn1.running_var", "bn1.num_batches_tracked"} <= set(frozen)
    assert [name for name in frozen if not torch.equal(before[name], after[name])] == []
    assert [name for name in set(before) - set(frozen) if torch.equal(before[name], after[name])] == []


def test_a_pattern_that_freezes_nothing_or_everything_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="freeze 'stem' names no layer") as caught:
        small_run(tmp_path / "run", SMALL.override(freeze=("stem",)))
    assert caught.value.fix == "its parts are conv1, bn1, layer1, layer2, layer3, fc"
    with pytest.raises(UsageError, match="leaves nothing to train"):
        small_run(tmp_path / "run", SMALL.override(freeze=("*",)))


# ---- pictures that can't be read -------------------------------------------------------------------------------------


def test_so_many_bad_pictures_are_left_out_and_no_more(tmp_path: Path) -> None:
    for split, count in (("train", 12), ("test", 3)):
        for name, red in (("ants", 20), ("bees", 220)):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (9, 9), (red, 5 * i, 10)).save(tmp_path / "data" / split / name / f"{i}.png")
    bad = [tmp_path / "data" / "train" / "bees" / "2.png", tmp_path / "data" / "test" / "ants" / "0.png"]
    bad[0].write_bytes(b"no picture")
    bad[1].write_bytes(bad[1].read_bytes()[:40])
    data = open_training_data(str(tmp_path / "data"))
    with pytest.raises(BadData, match="2 pictures can't be decoded, and at most 1 may be left out") as caught:
        small_run(tmp_path / "run", SMALL.override(epochs=1), data=data, skip_bad=1)
    assert "bees/2.png" in caught.value.message
    result = small_run(tmp_path / "run", SMALL.override(epochs=1, validation=0.0), data=data, skip_bad=2)
    assert [Path(one.image).name for one in result.skipped] == ["2.png", "0.png"]
    assert result.epochs[0]["steps"] == 1  # of 16 of 23 pictures
    assert result.test_top1 in {i / 5 for i in range(6)}
    for path in (tmp_path / "data" / "test").rglob("*.png"):
        path.write_bytes(b"no picture")
    data = open_training_data(str(tmp_path / "data"))
    with pytest.raises(BadData, match=r"test of .*: none of its 6 pictures can be decoded"):
        small_run(tmp_path / "empty", SMALL.override(epochs=1), data=data, skip_bad=20)


# ---- the ImageNet recipes' pictures and steps ------------------------------------------------------------------------


@given(st.integers(0, 2**63 - 1))
def test_a_scaled_crop_is_a_window_of_the_scaled_picture(seed: int) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (12, 17, 3), dtype=np.uint8)
    cut = random_scaled_crop(picture, Preprocessing(image_size=8, resize=8), (12, 12), seed)  # scaled by 1
    assert (cut.dtype, cut.shape) == (torch.uint8, (3, 8, 8))
    whole = torch.from_numpy(picture).permute(2, 0, 1)
    windows = [whole[:, top : top + 8, left : left + 8] for top in range(5) for left in range(10)]
    assert sum(torch.equal(cut, window) for window in windows) == 1


def test_the_shorter_side_takes_every_length_between_its_bounds() -> None:
    ramp = np.repeat(np.linspace(0, 255, 64, dtype=np.uint8)[None, :, None], 64, 0).repeat(3, 2)
    slopes = set()
    for seed in range(60):
        cut = random_scaled_crop(ramp, Preprocessing(image_size=8, resize=8), (16, 32), seed).float()
        slopes.add(round(255 / float((cut[0, 0, 7] - cut[0, 0, 0]) / 7)))  # pixels from black to white
    assert len(slopes) > 8
    assert 14 <= min(slopes) < 20 < 28 < max(slopes) <= 36


def test_colours_are_shifted_along_the_published_components() -> None:
    pictures = torch.zeros(20_000, 3, 1, 1)
    shard = Shard(first=0, total=len(pictures))
    recipe = lookup_recipe("imagenet-paper")
    shift = colour_shift(pictures, recipe, torch.Generator().manual_seed(0), shard)
    assert shift.shape == (20_000, 3, 1, 1)
    vectors, values = torch.tensor(COLOUR_VECTORS), torch.tensor(COLOUR_VALUES)
    expected = vectors @ torch.diag((0.1 * values) ** 2) @ vectors.T
    torch.testing.assert_close(torch.cov(shift.flatten(1).T), expected, rtol=0.05, atol=1e-6)


def test_a_number_of_steps_ends_the_training_within_an_epoch(tmp_path: Path) -> None:
    result = small_run(tmp_path / "run", SMALL.override(steps=5))
    assert [row["steps"] for row in result.epochs] == [3, 2]
    assert result.epochs[-1]["learning_rate"] == pytest.approx(SMALL.learning_rate_at(4, 5))


def test_weight_decay_leaves_norms_and_biases_alone_where_the_recipe_says_so(tmp_path: Path) -> None:
    found = {}
    for name, decays in (("all", True), ("some", False)):
        recipe = SMALL.override(decay_norms=decays, learning_rate=1e-9, weight_decay=1.0, momentum=0.0, nesterov=False)
        small_run(tmp_path / name, recipe)
        groups = read_checkpoint(tmp_path / name / "last").optimizer_state()["param_groups"]
        found[name] = [(group["weight_decay"], len(group["params"])) for group in groups]
    weights = sum(value.ndim > 1 for value in read_checkpoint(tmp_path / "all" / "last").module_state().values())
    ((decay, count),) = found["all"]
    assert decay == 1.0
    assert found["some"] == [(1.0, weights), (0.0, count - weights)]


@pytest.mark.parametrize(
    ("change", "count", "message"),
    [
        ({"batch_size": 31}, 2, "a batch of 31 can't be divided evenly among 2 processes"),
        ({"batch_size": 4}, 4, "leaves each of 4 processes one picture"),
        ({"sync_batch_norm": True}, 2, "SyncBatchNorm has no CPU form"),
        ({"precision": "fp16"}, 1, "fp16 trains on GPUs only"),
        ({"crop": "scaled", "pad": 0, "shorter_side": (4, 9)}, 1, "below the network's 8"),
    ],
)
def test_what_recipe_and_processes_cannot_do_together_is_refused(
    change: dict[str, Any], count: int, message: str
) -> None:
    with pytest.raises((UsageError, RuntimeUnavailable), match=message):
        select_device(SMALL.override(**change), small_net(), "cpu", ProcessGroup(world_size=count))


# ---- stopping, and memory --------------------------------------------------------------------------------------------


def test_ctrl_c_ends_the_command_in_time_with_130_and_the_last_checkpoint_kept(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "resnet_onnx", "train", "--model", "cifar-resnet8", "--data", "digits",
               "--epochs", "500", "--out", str(out), "--threads", "1"]  # fmt: skip
    log = tmp_path / "stderr"
    with log.open("w") as stderr, subprocess.Popen(command, cwd=ROOT, stderr=stderr) as process:
        hang = threading.Timer(HANG_S, process.kill)
        hang.start()
        try:
            wait_for_path(out / "history.csv", process)
            running = psutil.Process(process.pid)
            children, before = running.children(recursive=True), running.cpu_times()
            os.kill(process.pid, signal.SIGINT)
            _, status, used = os.wait4(process.pid, 0)
        finally:
            hang.cancel()
            process.kill()
    assert os.waitstatus_to_exitcode(status) == 130
    # The promise of 10 s, in CPU time: on a loaded machine the process waits for its turn.
    assert used.ru_utime + used.ru_stime - before.user - before.system < 10
    told = log.read_text().splitlines()
    assert told[-2:] == [
        "error: interrupted; what was complete is kept",
        "  go on from it: the same command with --resume",
    ]
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    kept = read_checkpoint(out / "last")
    assert (kept.epoch >= 1, kept.resumable) == (True, True)


GROWING = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from support.training_runs import SMALL, small_net, small_run

small_run(Path(sys.argv[2]), SMALL.override(epochs=int(sys.argv[3])))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss in KiB as on Linux")
def test_memory_does_not_grow_with_the_number_of_epochs(tmp_path: Path) -> None:
    peaks = []
    for epochs in (5, 50):
        done = subprocess.run(
            [sys.executable, "-c", GROWING, str(ROOT / "tests"), str(tmp_path / f"{epochs}"), str(epochs)],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        peaks.append(int(done.stdout))
    assert peaks[1] <= 1.05 * peaks[0]
