"""Training: recipes say what they mean, a run learns, stops safely and goes on as if it had never stopped."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.training_runs import SMALL, small_net, small_run, small_set, state_bytes, without_times
from support.waiting import HANG_S

from resnet_onnx.data.datasets import open_dataset
from resnet_onnx.models.catalog import lookup
from resnet_onnx.models.preprocessing import Preprocessing
from resnet_onnx.training import loaders, trainer, validation
from resnet_onnx.training.augmentation import Normaliser, augment, pad_colour, random_resized_crop, seed_for
from resnet_onnx.training.checkpoint import read_checkpoint
from resnet_onnx.training.device import supports_bf16
from resnet_onnx.training.loop import train
from resnet_onnx.training.plan import Progress, TrainingPlan
from resnet_onnx.training.recipes import Recipe, default_recipe, lookup_recipe, recipe_names
from resnet_onnx.training.splits import TrainingData, hold_out, open_training_data
from runtimes.errors import (
    BadData,
    BadWeights,
    CheckFailed,
    FileProblem,
    RuntimeUnavailable,
    Unavailable,
    UsageError,
)

CPU = torch.device("cpu")


# ---- recipes --------------------------------------------------------------------------------------------------------


def test_every_recipe_survives_json_and_can_be_overridden() -> None:
    assert {"digits", "cifar-fast", "cifar-paper", "folder"} <= set(recipe_names())
    for name in recipe_names():
        recipe = lookup_recipe(name)
        assert Recipe.from_json(recipe.to_json()) == recipe
        assert recipe.override(epochs=2, flip=None).epochs == 2
        assert recipe.override(flip=None).flip is recipe.flip
        assert recipe.source
    assert not lookup_recipe("digits").flip


def test_the_papers_schedule_is_64k_steps_with_drops_at_32k_and_48k() -> None:
    recipe = lookup_recipe("cifar-paper")
    steps_per_epoch = 45_000 // recipe.batch_size
    assert recipe.total_steps(steps_per_epoch) == 64_000
    assert recipe.override(epochs=2).total_steps(steps_per_epoch) == 702
    rates = [recipe.learning_rate_at(step, 64_000) for step in (0, 31_999, 32_000, 47_999, 48_000, 63_999)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    assert (recipe.momentum, recipe.weight_decay, recipe.batch_size, recipe.pad) == (0.9, 1e-4, 128, 4)
    assert recipe.validation * 50_000 == 5_000


@pytest.mark.parametrize("schedule", ["one-cycle", "cosine"])
def test_a_warmed_up_schedule_rises_to_its_peak_and_falls_to_nearly_zero(schedule: Any) -> None:
    recipe = lookup_recipe("cifar-fast").override(schedule=schedule, warmup=0.25, learning_rate=0.4)
    rates = [recipe.learning_rate_at(step, 1000) for step in range(1000)]
    assert rates[:250] == sorted(rates[:250])
    assert rates[250:] == sorted(rates[250:], reverse=True)
    assert max(rates) == pytest.approx(0.4, rel=0.01)
    assert 0 < rates[-1] < 0.001


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 0},
        {"epochs": 1.5},
        {"epochs": True},
        {"batch_size": 1},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"learning_rate": "fast"},
        {"momentum": 1.0},
        {"momentum": 0.0},
        {"weight_decay": -1e-4},
        {"schedule": "triangle"},
        {"schedule": "step"},
        {"milestones": (0.5,)},
        {"warmup": 1.0},
        {"crop": "none"},
        {"crop": "resized"},
        {"pad": 0},
        {"precision": "fp8"},
        {"validation": 0.95},
        {"label_smoothing": 1.0},
        {"flip": 1},
        {"unknown": 1},
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused_and_names_the_field(change: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        lookup_recipe("digits").override(**change)
    named = {"schedule": "schedule", "milestones": "milestones", "momentum": "momentum"}.get(next(iter(change)))
    assert (named or next(iter(change))) in caught.value.message


def test_milestones_must_rise_between_0_and_1() -> None:
    paper = lookup_recipe("cifar-paper")
    for milestones in ((0.5, 0.5), (0.75, 0.5), (0.5, 1.0), (0.0, 0.5)):
        with pytest.raises(UsageError, match="milestones"):
            paper.override(milestones=milestones)


def test_the_default_recipe_follows_the_data_and_the_network() -> None:
    assert default_recipe("digits", image_size=32, pictures=1400).name == "digits"
    assert default_recipe("./digits", image_size=224, pictures=1400).name == "folder"
    assert default_recipe("cifar.zip", image_size=32, pictures=50_000).name == "cifar-fast"
    assert default_recipe("pets", image_size=32, pictures=500).name == "folder-small"
    with pytest.raises(UsageError, match="no recipe 'cifar': choose digits"):
        lookup_recipe("cifar")


# ---- augmentation ---------------------------------------------------------------------------------------------------


def test_pad_and_crop_shows_windows_of_the_padded_picture_each_by_its_own_numbers() -> None:
    recipe = SMALL.override(pad=2)
    pictures = torch.randint(1, 256, (64, 3, 8, 8), dtype=torch.uint8)
    fill = torch.tensor([0, 0, 0], dtype=torch.uint8)
    changed = augment(pictures, recipe, fill, torch.Generator().manual_seed(3))
    padded = torch.nn.functional.pad(pictures, (2, 2, 2, 2))
    places = Counter()
    for before, after in zip(padded, changed, strict=True):
        found = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if torch.equal(before[:, top : top + 8, left : left + 8], after)
        ]
        assert len(found) == 1
        places[found[0]] += 1
    assert {top for top, _ in places} == {left for _, left in places} == set(range(5))
    assert len(places) > 15  # of 25
    assert torch.equal(changed, augment(pictures, recipe, fill, torch.Generator().manual_seed(3)))


def test_about_half_of_the_pictures_are_mirrored_and_the_rest_untouched() -> None:
    recipe = lookup_recipe("cifar-fast").override(crop="none", pad=0)
    pictures = torch.randint(0, 256, (400, 3, 4, 4), dtype=torch.uint8)
    changed = augment(pictures, recipe, torch.zeros(3, dtype=torch.uint8), torch.Generator().manual_seed(0))
    kept = [torch.equal(a, b) for a, b in zip(pictures, changed, strict=True)]
    mirrored = [torch.equal(a.flip(2), b) for a, b in zip(pictures, changed, strict=True)]
    assert all(k != m for k, m in zip(kept, mirrored, strict=True))
    assert 150 < sum(mirrored) < 250


def test_padding_with_the_mean_is_zero_to_the_network() -> None:
    normaliser = Normaliser(Preprocessing(), CPU)
    colour = pad_colour(SMALL.override(padding="mean"), normaliser)
    assert normaliser(colour.view(1, 3, 1, 1)).abs().max() < 0.01
    assert pad_colour(SMALL, normaliser).tolist() == [0, 0, 0]


def test_bytes_are_normalised_as_the_model_does_it_everywhere_else() -> None:
    preprocessing = Preprocessing(image_size=8, resize=8)
    pictures = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    ours = Normaliser(preprocessing, CPU)(torch.from_numpy(pictures).permute(0, 3, 1, 2))
    np.testing.assert_array_equal(ours.numpy(), preprocessing.normalise(pictures))


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**63 - 1))
def test_a_random_resized_crop_fits_any_picture_and_depends_on_its_seed_alone(
    height: int, width: int, seed: int
) -> None:
    picture = np.full((height, width, 3), 200, dtype=np.uint8)
    cut = random_resized_crop(picture, Preprocessing(image_size=6, resize=6), 0.1, seed)
    assert (cut.dtype, cut.shape) == (torch.uint8, (3, 6, 6))
    assert cut.eq(200).all()
    assert torch.equal(cut, random_resized_crop(picture, Preprocessing(image_size=6, resize=6), 0.1, seed))


def test_random_resized_crops_differ_between_seeds() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    cuts = {
        random_resized_crop(picture, Preprocessing(image_size=6, resize=6), 0.1, s).numpy().tobytes() for s in range(20)
    }
    assert len(cuts) == 20


def test_seeds_of_different_purposes_never_meet() -> None:
    seeds = {seed_for(seed, what, i) for seed in range(5) for what in ("a", "b") for i in range(50)}
    assert len(seeds) == 500


# ---- splits ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 4), min_size=1, max_size=80), st.floats(0.01, 0.9), st.integers(0, 2**32))
def test_holding_out_takes_a_share_of_every_class_and_never_all_of_it(
    labels: list[int], share: float, seed: int
) -> None:
    array = np.asarray(labels, dtype=np.int64)
    kept, held = hold_out(array, share, seed)
    assert sorted([*kept, *held]) == list(range(len(labels)))
    for label, count in Counter(labels).items():
        expected = min(max(1, round(share * count)), count - 1)
        assert int((array[held] == label).sum()) == expected
    again = hold_out(array, share, seed)
    np.testing.assert_array_equal(held, again[1])


def test_without_a_split_of_its_own_a_folder_has_no_test_pictures(tmp_path: Path) -> None:
    from PIL import Image

    def fill(folder: Path) -> None:
        for name in ("ants", "bees"):
            (folder / name).mkdir(parents=True)
            for i in range(3):
                Image.new("RGB", (9, 9), (i * 20, 80, 10)).save(folder / name / f"{i}.png")

    fill(tmp_path / "flat")
    found = open_training_data(str(tmp_path / "flat"))
    assert (len(found.train), found.validation, found.test) == (6, None, None)
    fill(tmp_path / "both" / "train")
    fill(tmp_path / "both" / "val")
    found = open_training_data(str(tmp_path / "both"))
    assert found.validation is not None
    assert (len(found.train), len(found.validation), found.test) == (6, 6, None)
    (tmp_path / "both" / "val").rename(tmp_path / "both" / "test")
    found = open_training_data(str(tmp_path / "both"))
    assert found.test is not None
    assert (found.validation, len(found.test)) == (None, 6)
    (tmp_path / "both" / "test").rename(tmp_path / "elsewhere")
    assert open_training_data(str(tmp_path / "both")).test is None


def test_all_three_splits_are_taken_and_a_faulty_one_is_refused(tmp_path: Path) -> None:
    from PIL import Image

    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        for name in ("ants", "bees"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (9, 9), (i * 20, 80, 10)).save(tmp_path / split / name / f"{i}.png")
    found = open_training_data(str(tmp_path))
    assert found.validation is not None
    assert found.test is not None
    assert (len(found.train), len(found.validation), len(found.test)) == (6, 4, 2)
    assert found.with_validation(0.5, seed=0) is found
    (tmp_path / "val" / "bees").rename(tmp_path / "val" / "wasps")
    with pytest.raises(BadData, match="differ in bees, wasps"):
        open_training_data(str(tmp_path))
    (tmp_path / "val" / "wasps").rename(tmp_path / "val" / "bees")
    (tmp_path / "test" / "bees" / "0.png").unlink()
    with pytest.raises(BadData, match="no pictures in class folder test/bees"):
        open_training_data(str(tmp_path))
    (tmp_path / "test" / "ants" / "0.png").unlink()
    with pytest.raises(BadData, match="no pictures in the folder test"):
        open_training_data(str(tmp_path))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux takes any bytes for a file's name")
def test_file_names_may_be_any_bytes_and_class_names_utf_8(tmp_path: Path) -> None:
    from PIL import Image

    root = tmp_path / "pictures"
    for name in ("ants", "bees"):
        (root / name).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (9, 9), (i * 20, 80, 10)).save(root / name / "one.png")
            os.rename(root / name / "one.png", os.fsencode(root / name) + b"/caf\xe9%d.png" % i)
    data = open_training_data(str(root))
    assert len(small_run(tmp_path / "run", SMALL.override(epochs=1), data=data).epochs) == 1
    os.rename(root / "ants", os.fsencode(root) + b"/caf\xe9")
    with pytest.raises(BadData, match="is not UTF-8"):
        open_training_data(str(root))


def test_digits_hold_out_nothing_from_the_test_split() -> None:
    data = open_training_data("digits").with_validation(0.1, seed=0)
    assert data.validation is not None
    assert data.test is not None
    parts = [{s.item_name(i) for i in range(len(s))} for s in (data.train, data.validation, data.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 1797
    assert min(Counter(data.validation.labels.tolist()).values()) >= 13


def test_data_that_nothing_can_be_learned_from_is_refused() -> None:
    pair = small_set(classes=2)
    with pytest.raises(BadData, match="one class"):
        TrainingData(train=replace(pair, classes=("only",), labels=np.zeros(64, dtype=np.int64)))
    with pytest.raises(BadData, match="no pictures of class 1"):
        TrainingData(train=replace(pair, labels=np.zeros(64, dtype=np.int64)))
    with pytest.raises(BadData, match="no class folders"):
        TrainingData(train=replace(pair, classes=()))
    with pytest.raises(BadData, match="differ in class 2"):
        TrainingData(train=pair, test=small_set(classes=3))
    with pytest.raises(BadData, match="too few to hold some out"):
        TrainingData(train=small_set(count=2)).with_validation(0.1, 0)


# ---- plan -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("change", "message"), [
    ({"threads": 0}, "threads must be a whole number of at least 1, not 0"),
    ({"workers": -1}, "workers must be a whole number of at least 0, not -1"),
    ({"skip_bad": -2}, "skip_bad must be a whole number of at least 0, not -2"),
])  # fmt: skip
def test_a_plan_with_a_number_out_of_range_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TrainingPlan(
            entry=small_net(), data=TrainingData(train=small_set()), recipe=SMALL, out=tmp_path / "run", **change
        )
    assert not (tmp_path / "run").exists()


# ---- training -------------------------------------------------------------------------------------------------------


def test_digits_reach_97_percent_in_6_epochs_and_the_checkpoint_does_it_again(tmp_path: Path) -> None:
    data = open_training_data("digits")
    recipe = default_recipe("digits", image_size=32, pictures=len(data.train))
    plan = TrainingPlan(entry=lookup("cifar-resnet20"), data=data, recipe=recipe, out=tmp_path / "run", threads=1)
    result = train(plan)
    assert [row["epoch"] for row in result.epochs] == [1, 2, 3, 4, 5, 6]
    assert result.test_top1 is not None
    assert result.test_top1 >= 0.97
    assert result.best["top1"] >= 0.97
    network = read_checkpoint(result.checkpoint).network()
    assert network.labels == tuple("0123456789")
    assert data.test is not None
    module = network.load()
    loader = loaders.open_loader(data.test, network.preprocessing, CPU, recipe=None, seed=0, workers=0)
    assert validation.evaluate(module, loader, Normaliser(network.preprocessing, CPU))[0] == result.test_top1
    assert read_checkpoint(result.checkpoint).metrics["test_top1"] == result.test_top1


def test_the_result_the_history_and_both_checkpoints_agree(tmp_path: Path) -> None:
    seen: list[Progress] = []
    result = small_run(tmp_path / "run", progress=seen.append)
    assert [row["epoch"] for row in result.epochs] == [1, 2, 3]
    assert [p.finished for p in seen if p.finished] == result.epochs
    assert all(p.loss is not None for p in seen if p.step)
    best = max(result.epochs, key=lambda row: (row["validation_top1"], -row["validation_loss"]))
    assert result.best == {"epoch": best["epoch"], "top1": best["validation_top1"]}
    assert result.test_top1 is None
    assert result.images_per_second > 0
    kept, last = read_checkpoint(result.checkpoint), read_checkpoint(result.last)
    assert (kept.epoch, last.epoch) == (best["epoch"], 3)
    assert kept.labels == ("class 0", "class 1")
    decided = SMALL.override(layout="channels-last", compile="off")
    assert last.recipe == decided.to_json() == result.recipe.to_json()
    assert last.metrics == result.epochs[-1]
    assert (last.resumable, kept.resumable) == (True, False)


def test_progress_tells_the_accuracy_so_far(tmp_path: Path) -> None:
    seen: list[Progress] = []
    result = small_run(tmp_path / "run", progress=seen.append)
    for row in result.epochs:
        steps = [p for p in seen if p.stage == "training" and p.step and p.epoch == row["epoch"]]
        assert [p.step for p in steps] == list(range(1, row["steps"] + 1))
        assert steps[-1].top1 == row["train_top1"]
        assert all(p.top1 is not None and 0 <= p.top1 <= 1 for p in steps)


def test_other_test_pictures_are_looked_at_again(tmp_path: Path) -> None:
    data = TrainingData(train=small_set(), test=small_set(seed=1))
    first = small_run(tmp_path / "run", data=data)
    assert first.test_top1 is not None
    assert small_run(tmp_path / "run", data=data, resume=True).test_top1 == first.test_top1
    swapped = replace(small_set(seed=1), classes=data.train.classes)
    swapped = replace(swapped, labels=1 - swapped.labels)
    again = small_run(tmp_path / "run", data=replace(data, test=swapped), resume=True)
    assert again.test_top1 == pytest.approx(1 - first.test_top1)
    assert read_checkpoint(again.checkpoint).metrics["test_top1"] == again.test_top1


@pytest.mark.parametrize(("side", "most"), [(8, 256), (64, 256), (224, 20), (2000, 1)])
def test_large_pictures_are_looked_at_few_at_a_time(side: int, most: int) -> None:
    class Blank(loaders.Loader):
        def batches(self, order: torch.Tensor, batch_size: int, *, epoch: int) -> Any:
            asked.append(batch_size)
            for index in torch.split(order, batch_size):
                yield torch.zeros(len(index), 3, 1, 1), self.labels[index]

        def close(self) -> None:
            pass

    asked: list[int] = []
    loader = Blank(np.zeros(300, dtype=np.int64), side, CPU)
    correct, _ = validation.predictions(torch.nn.Flatten(), loader, lambda pictures: pictures)  # type: ignore[arg-type]
    assert (asked, len(correct)) == ([most], 300)


def test_what_does_not_fit_into_memory_is_one_message(tmp_path: Path) -> None:
    script = "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30)); " \
             "from resnet_onnx.cli.main import main; sys.exit(main(sys.argv[1:]))"  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", script, "train", "--model", "cifar-resnet20", "--data", "digits", "--image-size", "512",
         "--batch", "1024", "--out", str(tmp_path / "run"), "--threads", "1", "--workers", "0"],
        capture_output=True, text=True, timeout=HANG_S, check=False,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "does not fit into memory" in done.stderr
    assert "--batch" in done.stderr


@pytest.mark.slow
def test_a_compiled_training_leaves_an_ordinary_checkpoint(tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("there is no C++ compiler (g++)")
    torch._dynamo.reset()
    recipe = SMALL.override(compile="on")
    result = small_run(tmp_path / "run", recipe)
    plain = small_run(tmp_path / "plain")
    assert [row["train_loss"] for row in result.epochs] == pytest.approx(
        [row["train_loss"] for row in plain.epochs], rel=1e-2
    )
    names = [read_checkpoint(found.last).module_state().keys() for found in (result, plain)]
    assert names[0] == names[1]


@pytest.mark.slow
def test_without_a_compiler_compiling_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    done = subprocess.run(
        [sys.executable, "-m", "resnet_onnx", "train", "--model", "cifar-resnet8", "--data", "digits", "--epochs", "1",
         "--set", "compile=on", "--out", str(tmp_path / "run"), "--threads", "1", "--workers", "0"],
        capture_output=True, text=True, timeout=HANG_S, check=False,
        env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")},
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "can't compile" in done.stderr


def test_one_seed_gives_one_result_and_another_gives_another(tmp_path: Path) -> None:
    first, second = small_run(tmp_path / "a"), small_run(tmp_path / "b")
    assert without_times(first.epochs) == without_times(second.epochs)
    assert state_bytes(tmp_path / "a") == state_bytes(tmp_path / "b")
    small_run(tmp_path / "c", seed=1)
    assert state_bytes(tmp_path / "c") != state_bytes(tmp_path / "a")


def test_training_leaves_the_callers_random_numbers_and_threads_alone(tmp_path: Path) -> None:
    torch.manual_seed(11)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    small_run(tmp_path / "run", SMALL.override(epochs=1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_streamed_pictures_train_to_the_same_bits_as_pictures_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_run(tmp_path / "memory")
    monkeypatch.setattr(loaders, "IN_MEMORY_BYTES", 0)
    small_run(tmp_path / "stream")
    assert state_bytes(tmp_path / "memory") == state_bytes(tmp_path / "stream")


def test_a_process_without_pictures_of_its_own_gets_no_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders, "IN_MEMORY_BYTES", 0)
    preprocessing = lookup("cifar-resnet20").preprocessing
    loader = loaders.open_loader(open_training_data("digits").train, preprocessing, CPU, recipe=None, seed=0, workers=0)
    assert list(loader.batches(torch.arange(0), 4, epoch=0)) == []
    assert [len(labels) for _, labels in loader.batches(torch.arange(5), 4, epoch=0)] == [4, 1]


def test_random_resized_crops_train_to_the_same_bits_with_and_without_workers(tmp_path: Path) -> None:
    recipe = lookup_recipe("folder").override(epochs=2, batch_size=16, precision="fp32")
    data = TrainingData(train=small_set(size=20))
    small_run(tmp_path / "alone", recipe, data=data)
    small_run(tmp_path / "helped", recipe, data=data, workers=1)
    assert state_bytes(tmp_path / "alone") == state_bytes(tmp_path / "helped")


def test_a_picture_that_cannot_be_decoded_is_named_whether_streamed_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    for name in ("ants", "bees"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (9, 9), (i * 20, 80, 10)).save(tmp_path / "data" / name / f"{i}.png")
    (tmp_path / "data" / "bees" / "2.png").write_bytes(b"no picture")
    for limit in (loaders.IN_MEMORY_BYTES, 0):
        monkeypatch.setattr(loaders, "IN_MEMORY_BYTES", limit)
        with pytest.raises(Exception, match=r"bees/2\.png") as caught:
            small_run(tmp_path / f"run{limit}", data=open_training_data(str(tmp_path / "data")))
        assert getattr(caught.value, "exit_code", None) == 2


def test_a_worker_process_that_dies_is_an_error_and_not_a_hang(tmp_path: Path) -> None:
    def kill(progress: Progress) -> None:
        if progress.finished:
            workers = [p for p in psutil.Process().children(recursive=True) if not p.children()]
            loading = [p for p in workers if "forkserver" in " ".join(p.cmdline())]
            assert loading
            for worker in loading:
                worker.kill()

    recipe = lookup_recipe("folder").override(batch_size=16, precision="fp32")
    with pytest.raises(Unavailable, match="a worker process that loads pictures died"):
        small_run(tmp_path / "run", recipe, data=TrainingData(train=small_set(size=20)), workers=1, progress=kill)
    assert read_checkpoint(tmp_path / "run" / "last").epoch == 1


def test_fewer_pictures_than_a_batch_and_no_validation_still_train(tmp_path: Path) -> None:
    recipe = SMALL.override(batch_size=500, validation=0.0)
    result = small_run(tmp_path / "run", recipe)
    assert [row["steps"] for row in result.epochs] == [1, 1, 1]
    assert result.best == {"epoch": 3, "top1": None}
    assert read_checkpoint(result.checkpoint).epoch == 3


def test_precision_auto_is_resolved_and_recorded(tmp_path: Path) -> None:
    result = small_run(tmp_path / "run", SMALL.override(precision="auto", epochs=1))
    expected = "bf16" if supports_bf16(CPU) else "fp32"
    assert result.recipe.precision == expected
    assert read_checkpoint(result.last).recipe["precision"] == expected
    again = small_run(tmp_path / "run", SMALL.override(precision="auto", epochs=1), resume=True)
    assert again.recipe.precision == expected


def test_training_starts_from_given_weights(tmp_path: Path) -> None:
    first = small_run(tmp_path / "first", SMALL.override(epochs=1))
    state = read_checkpoint(first.last).module_state()
    still = SMALL.override(epochs=1, learning_rate=1e-12)
    second = small_run(tmp_path / "second", still, initial_state=state)
    found = read_checkpoint(second.last).module_state()
    assert torch.allclose(found["conv1.weight"], state["conv1.weight"], atol=1e-9)
    with pytest.raises(BadWeights, match="do not fit the network"):
        small_run(tmp_path / "third", initial_state={k: v for k, v in state.items() if "fc" not in k})


# ---- stopping and going on ------------------------------------------------------------------------------------------

KILLED = """
import signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from support.training_runs import SMALL, small_run
from resnet_onnx.training.plan import Progress

def wait_to_be_killed(progress: Progress) -> None:
    if (progress.epoch, progress.step) == (2, 2):
        print("in the second epoch", flush=True)
        signal.pause()

small_run(Path(sys.argv[2]), SMALL, progress=wait_to_be_killed)
"""


def test_a_run_killed_with_kill_9_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    here = Path(__file__).parent
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(here), str(tmp_path / "killed")],
        cwd=here.parent,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "in the second epoch\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert process.returncode == -signal.SIGKILL
    assert read_checkpoint(tmp_path / "killed" / "last").epoch == 1
    resumed = small_run(tmp_path / "killed", resume=True)
    assert resumed.resumed_from == 1
    whole = small_run(tmp_path / "whole", resume=True)
    assert whole.resumed_from is None
    assert without_times(resumed.epochs) == without_times(whole.epochs)
    assert resumed.best == whole.best
    assert state_bytes(tmp_path / "killed") == state_bytes(tmp_path / "whole")


class Dropping(torch.nn.Module):
    """A net whose training draws from torch's own generator, as VGG's dropout does."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(3 * 8 * 8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept: torch.Tensor = self.fc(torch.nn.functional.dropout(x.flatten(1), 0.5, self.training))
        return kept


def test_ctrl_c_leaves_a_usable_state_and_dropout_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "build", lambda _, **_options: Dropping())

    def interrupt(progress: Progress) -> None:
        if (progress.epoch, progress.step) == (2, 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small_run(tmp_path / "stopped", progress=interrupt)
    assert read_checkpoint(tmp_path / "stopped" / "last").epoch == 1
    assert sorted(p.name for p in (tmp_path / "stopped").iterdir()) == [".lock", "best", "history.csv", "last"]
    small_run(tmp_path / "stopped", resume=True)
    small_run(tmp_path / "whole")
    assert state_bytes(tmp_path / "stopped") == state_bytes(tmp_path / "whole")


def test_a_complete_run_is_resumed_without_looking_at_a_picture(tmp_path: Path) -> None:
    data = TrainingData(train=small_set(), test=small_set(seed=5))
    first = small_run(tmp_path / "run", data=data)
    before = state_bytes(tmp_path / "run")
    seen: list[Progress] = []
    again = small_run(tmp_path / "run", data=data, resume=True, progress=seen.append)
    assert seen == []
    assert (again.epochs, again.best, again.test_top1) == (first.epochs, first.best, first.test_top1)
    assert again.resumed_from == 3
    assert state_bytes(tmp_path / "run") == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"recipe": SMALL.override(epochs=4)}, "recipe epochs was 3, now 4"),
        ({"recipe": SMALL.override(precision="bf16")}, "recipe precision was 'fp32', now 'bf16'"),
        ({"seed": 7}, r"another seed \(0 before, now 7\)"),
        ({"data": TrainingData(train=small_set(count=66))}, "another data"),
        ({"data": TrainingData(train=small_set(classes=4))}, "another labels|another config"),
    ],
)
def test_resuming_something_else_is_refused_and_nothing_changes(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    small_run(tmp_path / "run", SMALL.override(epochs=3))
    before = state_bytes(tmp_path / "run")
    with pytest.raises(UsageError, match=message):
        small_run(tmp_path / "run", resume=True, **changed)
    assert state_bytes(tmp_path / "run") == before


def test_a_folder_with_a_training_is_not_overwritten(tmp_path: Path) -> None:
    small_run(tmp_path / "run", SMALL.override(epochs=1))
    before = state_bytes(tmp_path / "run")
    with pytest.raises(UsageError, match="holds a training already") as caught:
        small_run(tmp_path / "run", SMALL.override(epochs=1))
    assert "--resume" in str(caught.value.fix)
    assert state_bytes(tmp_path / "run") == before


def test_a_damaged_last_checkpoint_is_not_resumed_from(tmp_path: Path) -> None:
    small_run(tmp_path / "run", SMALL.override(epochs=1))
    path = tmp_path / "run" / "last" / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BadWeights, match=r"optimizer\.safetensors is damaged"):
        small_run(tmp_path / "run", SMALL.override(epochs=1), resume=True)


def test_a_kill_between_last_and_best_is_made_good(tmp_path: Path) -> None:
    import shutil

    result = small_run(tmp_path / "run", SMALL.override(validation=0.0))
    good = state_bytes(tmp_path / "run")
    shutil.rmtree(result.checkpoint)
    (tmp_path / "run" / ".last.1.abc.tmp").mkdir()
    again = small_run(tmp_path / "run", SMALL.override(validation=0.0), resume=True)
    assert again.best["epoch"] == 3
    assert state_bytes(tmp_path / "run") == good
    assert not (tmp_path / "run" / ".last.1.abc.tmp").exists()


def test_a_training_that_diverges_stops_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    recipe = SMALL.override(epochs=40, learning_rate=1000.0, weight_decay=1.0, momentum=0.0, nesterov=False)
    with pytest.raises(CheckFailed, match=r"diverged: .* in epoch \d+") as caught:
        small_run(tmp_path / "run", recipe.override(batch_size=500))
    assert caught.value.exit_code == 1
    assert "learning rate" in str(caught.value.fix)
    kept = read_checkpoint(tmp_path / "run" / "last")
    assert f"(epoch {kept.epoch})" in caught.value.message
    assert all(value.isfinite().all() for value in kept.module_state().values())


def test_a_loss_that_is_not_finite_is_noticed_at_its_step(tmp_path: Path) -> None:
    recipe = SMALL.override(learning_rate=1000.0, weight_decay=1.0, momentum=0.0, nesterov=False, validation=0.0)
    steps: list[int] = []
    with pytest.raises(CheckFailed, match=r"the loss is (nan|inf) in epoch 1, step \d+; no epoch was finished"):
        small_run(tmp_path / "run", recipe.override(batch_size=2), progress=lambda p: steps.append(p.step))
    assert 2 < max(steps) < 31
    assert not (tmp_path / "run" / "last").exists()


class Overflowing(Dropping):
    """A net in which a running statistic overflows while the loss stays finite."""

    seen: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.tensor(1e30))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen *= 10  # float32 ends at 3.4e38, in the third epoch of four steps
        return super().forward(x)


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "build", lambda _, **_options: Overflowing())
    with pytest.raises(CheckFailed, match="a weight is no longer finite in epoch 3"):
        small_run(tmp_path / "run", SMALL.override(batch_size=14))
    assert read_checkpoint(tmp_path / "run" / "last").epoch == 2


def test_every_epoch_has_its_own_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    orders: list[list[int]] = []
    batches = loaders.MemoryLoader.batches

    def spy(self: loaders.MemoryLoader, order: torch.Tensor, batch_size: int, *, epoch: int) -> Any:
        orders.append(order.tolist())
        return batches(self, order, batch_size, epoch=epoch)

    monkeypatch.setattr(loaders.MemoryLoader, "batches", spy)
    small_run(tmp_path / "run", SMALL.override(validation=0.0))
    assert [sorted(order) for order in orders] == [list(range(64))] * 3
    assert len({tuple(order) for order in [*orders, list(range(64))]}) == 4


def test_a_folder_that_cannot_be_written_is_one_message_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    seen: list[Progress] = []
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(FileProblem, match="can't write into"):
            small_run(out, progress=seen.append)
    assert seen == []
    assert (tmp_path / "file").read_text() == "mine"


def test_two_trainings_into_one_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with (
        filelock.FileLock(tmp_path / "run" / ".lock", is_singleton=False),
        pytest.raises(FileProblem, match="another process is training into"),
    ):
        small_run(tmp_path / "run")
    small_run(tmp_path / "run", SMALL.override(epochs=1))


@pytest.mark.parametrize(
    ("device", "error"), [("tpu", UsageError), ("meta", UsageError), ("cuda:99", RuntimeUnavailable)]
)
def test_a_device_that_is_not_here_is_named(tmp_path: Path, device: str, error: type[Exception]) -> None:
    with pytest.raises(error, match=device):
        small_run(tmp_path / "run", device=device)


def test_jpegs_of_a_zip_are_learned_from(tmp_path: Path, shared_data: Path) -> None:
    whole = open_dataset(shared_data / "cifar10-jpeg.zip", split="train")
    rng = np.random.default_rng(0)
    pair = [np.flatnonzero(whole.labels == label)[:300] for label in (0, 6)]  # airplanes and frogs
    chosen = whole.subset(rng.permutation(np.concatenate(pair)))
    data = TrainingData(
        train=replace(chosen, classes=("airplane", "frog"), labels=(chosen.labels == 6).astype(np.int64))
    )
    recipe = lookup_recipe("folder-small").override(epochs=3)
    result = train(
        TrainingPlan(entry=small_net(32), data=data, recipe=recipe, out=tmp_path / "run", threads=1, workers=0)
    )
    assert result.best["top1"] >= 0.85
