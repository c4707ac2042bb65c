"""How close `evaluate` comes to the ideal of decoding and computing in turn on all cores.

    python benchmarks/evaluate_throughput.py PHOTOS [--models resnet18,resnet50] [--runtimes ort-cpu,openvino]

PHOTOS is a folder or .zip of real photos; they are repeated to `--images`. For each model and runtime, within one run
and in alternation: the time per image of decoding alone (all cores), of computing alone (all cores, the runtime as
`bench` opens it), and of `evaluate`, which does both. The ideal is 1/(t_decode + t_compute); the ratio of the measured
rate to it is printed, the median of `--rounds`. Exit code 1 where one is below `--at-least`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from resnet_onnx.data.batches import Batches, default_workers
from resnet_onnx.data.datasets import PictureSet, open_dataset
from resnet_onnx.evaluation import PictureModel, evaluate
from resnet_onnx.models.preprocessing import Preprocessing
from runtimes import ModelSource, RuntimeOptions, open_runtime


def export_random(name: str, folder: Path) -> Path:
    """Exports a network with random weights; speed does not depend on them."""
    import torch

    from converters.torch_export import ExportOptions, export
    from resnet_onnx.models.build import build
    from resnet_onnx.models.catalog import lookup

    path = folder / f"{name}.onnx"
    module = build(lookup(name).config, generator=torch.Generator().manual_seed(0)).eval()
    export(module, (torch.zeros(2, 3, 224, 224),), path, ExportOptions(), {})
    return path


def decode_seconds(photos: PictureSet, preprocessing: Preprocessing, batch_size: int, workers: int) -> float:
    """Seconds per image of decoding and preparing alone."""
    with Batches(photos, preprocessing, batch_size=batch_size, workers=workers) as batches:
        before, start = batches.wait_for_first(), time.perf_counter()
        images = sum(len(batch.labels) for batch in batches)
        return (time.perf_counter() - start) / (images - before)


def compute_seconds(model: PictureModel, pictures: Any, at_least_s: float = 4.0) -> float:
    """Seconds per image of computing alone."""
    model.scores(pictures)
    images, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < at_least_s:
        model.scores(pictures)
        images += len(pictures)
    return elapsed / images


def measure(runtime: str, path: Path, photos: PictureSet, args: argparse.Namespace) -> dict[str, float]:
    """Returns the medians over the rounds."""
    preprocessing = Preprocessing()
    class_map = np.arange(len(photos.classes), dtype=np.int64)
    source = ModelSource(path=path)
    with Batches(photos, preprocessing, batch_size=args.batch) as batches:
        pictures = next(batches).pictures
    rows: dict[str, list[float]] = {"decode_ms": [], "compute_ms": [], "ideal": [], "measured": [], "ratio": []}
    for _ in range(args.rounds):
        decode = decode_seconds(photos, preprocessing, args.batch, args.workers)
        with open_runtime(runtime, source, options=RuntimeOptions()) as opened:
            compute = compute_seconds(PictureModel(opened, preprocessing), pictures)
        with open_runtime(runtime, source, options=RuntimeOptions(spin=args.spin)) as opened:
            found = evaluate(
                opened,
                photos,
                preprocessing,
                class_map=class_map,
                batch_size=args.batch,
                workers=args.workers,
            )
        ideal = 1 / (decode + compute)
        for key, value in (
            ("decode_ms", decode * 1e3),
            ("compute_ms", compute * 1e3),
            ("ideal", ideal),
            ("measured", found.images_per_second),
            ("ratio", found.images_per_second / ideal),
        ):
            rows[key].append(value)
    return {key: statistics.median(values) for key, values in rows.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos")
    parser.add_argument("--models", default="resnet18,resnet50")
    parser.add_argument("--runtimes", default="ort-cpu,openvino")
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=default_workers())
    parser.add_argument("--spin", action="store_true", help="open the runtime of evaluate with spinning threads")
    parser.add_argument("--at-least", type=float, default=0.85)
    args = parser.parse_args()
    dataset = open_dataset(args.photos)
    photos = dataset.subset(np.arange(args.images) % len(dataset))
    worst = float("inf")
    heads = ("decode ms", "compute ms", "ideal/s", "evaluate/s", "ratio")
    print(f"{'model':<10} {'runtime':<10} " + " ".join(f"{head:>11}" for head in heads))
    with tempfile.TemporaryDirectory() as folder:
        for name in args.models.split(","):
            path = export_random(name, Path(folder))
            for runtime in args.runtimes.split(","):
                row = measure(runtime, path, photos, args)
                worst = min(worst, row["ratio"])
                print(
                    f"{name:<10} {runtime:<10} {row['decode_ms']:>11.2f} {row['compute_ms']:>11.2f} "
                    f"{row['ideal']:>11.1f} {row['measured']:>11.1f} {row['ratio']:>11.2f}",
                    flush=True,
                )
    return 0 if worst >= args.at_least else 1


if __name__ == "__main__":
    sys.exit(main())
