"""Trainings that take a second: a small network on pictures of noise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from resnet_onnx.data.datasets import PictureSet, from_arrays
from resnet_onnx.models.catalog import CatalogEntry, lookup
from resnet_onnx.training.loop import train
from resnet_onnx.training.plan import TrainingPlan, TrainingResult
from resnet_onnx.training.recipes import Recipe, lookup_recipe
from resnet_onnx.training.splits import TrainingData


def small_net(size: int = 8) -> CatalogEntry:
    entry = lookup("cifar-resnet8")
    return replace(entry, preprocessing=replace(entry.preprocessing, image_size=size, resize=size))


def small_set(count: int = 64, classes: int = 2, size: int = 8, seed: int = 0) -> PictureSet:
    """Noise of two brightnesses: learnable, and made in no time."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    pictures = rng.integers(0, 120, (count, size, size, 3)) + (labels * (130 // classes))[:, None, None, None]
    return from_arrays("noise", pictures.astype(np.uint8), labels, [f"class {i}" for i in range(classes)])


SMALL = lookup_recipe("digits").override(epochs=3, batch_size=16, pad=1, precision="fp32")


def small_run(out: Path, recipe: Recipe = SMALL, **options: Any) -> TrainingResult:
    data = options.pop("data", None) or TrainingData(train=small_set())
    callbacks = {name: options.pop(name) for name in ("progress", "after_epoch", "group") if name in options}
    values = {"threads": 1, "workers": 0} | options
    return train(TrainingPlan(entry=small_net(), data=data, recipe=recipe, out=out, **values), **callbacks)


def state_bytes(out: Path) -> dict[str, bytes]:
    names = ("model.safetensors", "optimizer.safetensors", "rng.safetensors")
    found = {f"last/{name}": (out / "last" / name).read_bytes() for name in names}
    return {**found, "best": (out / "best" / "model.safetensors").read_bytes()}


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {k: v for k, v in row.items() if k not in ("seconds", "images_per_second", "input_seconds")} for row in rows
    ]
