"""How close `evaluate` comes to the ideal of decoding and computing in turn on all cores.

    python benchmarks/evaluate_throughput.py PHOTOS [--models resnet18,resnet50] [--runtimes ort-cpu,openvino]

PHOTOS is a folder or .zip of real photos; they are repeated to `--images`. For each model and runtime, within one run
and in alternation: the time per image of decoding alone (all cores), of computing alone (all cores, the runtime as
`bench` opens it), and the rate of `evaluate`, which does both. The ideal is 1/(t_decode + t_compute); the ratio of the
measured rate to it is printed, the median of `--rounds`, beside the share of the cores that other programs used. Exit
code 1 where a ratio is below `--at-least` on a quiet machine.
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
import psutil

from resnet_onnx.data.batches import Batches, default_workers
from resnet_onnx.data.datasets import PictureSet, open_dataset
from resnet_onnx.evaluation import EvaluationPlan, PictureModel, evaluate
from resnet_onnx.models.preprocessing import Preprocessing
from runtimes import ModelSource, Runtime, RuntimeOptions, open_runtime

_QUIET = 0.1
"""Share of the cores that others may use before a ratio says more of them than of us."""


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


class Phase:
    """Watches the clock, and what other programs used of the cores meanwhile; workers are ours."""

    def __init__(self) -> None:
        self._start = self._read()

    def _read(self) -> tuple[float, float, float]:
        times = psutil.cpu_times()
        family = [psutil.Process(), *psutil.Process().children(recursive=True)]
        own = sum(used.user + used.system for used in (process.cpu_times() for process in family))
        return time.perf_counter(), times.user + times.nice + times.system, own

    def stop(self) -> tuple[float, float]:
        """Returns seconds, and the share of all cores that others used."""
        wall, busy, own = (now - then for now, then in zip(self._read(), self._start, strict=True))
        return wall, max(0.0, busy - own) / (wall * (psutil.cpu_count() or 1))


def decoding(photos: PictureSet, preprocessing: Preprocessing, args: argparse.Namespace) -> tuple[float, float]:
    """Seconds per image, and others' share, of decoding and preparing alone."""
    with Batches(photos, preprocessing, batch_size=args.batch, workers=args.workers) as batches:
        images, phase = -batches.wait_for_first(), Phase()
        for batch in batches:
            images += len(batch.labels)
            if batch.indices[-1] + args.batch >= len(photos):  # the workers still live, so that their time is ours
                break
        wall, others = phase.stop()
    return wall / images, others


def evaluating(
    runtime: Runtime, photos: PictureSet, preprocessing: Preprocessing, args: argparse.Namespace
) -> tuple[float, float]:
    """Images per second of `evaluate`, and others' share."""
    class_map = np.arange(len(photos.classes), dtype=np.int64)
    phases: list[Phase] = []
    shares: list[float] = []

    def progress(done: int, total: int) -> None:
        if not phases:
            phases.append(Phase())
        elif done + args.batch >= total and not shares:
            shares.append(phases[0].stop()[1])

    found = evaluate(
        runtime,
        photos,
        preprocessing,
        EvaluationPlan(data=args.photos, batch_size=args.batch, workers=args.workers),
        class_map=class_map,
        progress=progress,
    )
    return found.row.images_per_second, shares[0]


def computing(model: PictureModel, pictures: Any, runs: int) -> tuple[float, float]:
    """Seconds per image, and others' share, of computing alone."""
    model.scores(pictures)
    phase = Phase()
    for _ in range(runs):
        model.scores(pictures)
    wall, others = phase.stop()
    return wall / (runs * len(pictures)), others


def measure(runtime: str, path: Path, photos: PictureSet, args: argparse.Namespace) -> dict[str, float]:
    """Returns the medians over the rounds."""
    preprocessing = Preprocessing()
    with Batches(photos, preprocessing, batch_size=args.batch) as batches:
        pictures = next(batches).pictures
    rows: dict[str, list[float]] = {}
    source = ModelSource(path=path)
    with (
        open_runtime(runtime, source) as alone,
        open_runtime(runtime, source, options=RuntimeOptions(spin=args.spin)) as beside,
    ):
        for _ in range(args.rounds):
            decode, others_decoding = decoding(photos, preprocessing, args)
            compute, others_computing = computing(PictureModel(alone, preprocessing), pictures, args.images // 100)
            rate, others_evaluating = evaluating(beside, photos, preprocessing, args)
            for key, value in (
                ("decode ms", decode * 1e3),
                ("compute ms", compute * 1e3),
                ("ideal/s", 1 / (decode + compute)),
                ("evaluate/s", rate),
                ("ratio", rate * (decode + compute)),
                ("others", max(others_decoding, others_computing, others_evaluating)),
            ):
                rows.setdefault(key, []).append(value)
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
    missed = False
    heads = ("decode ms", "compute ms", "ideal/s", "evaluate/s", "ratio", "others")
    print(f"{'model':<10} {'runtime':<10} " + " ".join(f"{head:>10}" for head in heads))
    with tempfile.TemporaryDirectory() as folder:
        for name in args.models.split(","):
            path = export_random(name, Path(folder))
            for runtime in args.runtimes.split(","):
                row = measure(runtime, path, photos, args)
                disturbed = row["others"] > _QUIET
                missed |= not disturbed and row["ratio"] < args.at_least
                print(
                    f"{name:<10} {runtime:<10} "
                    + " ".join(f"{row[head]:>10.{0 if head.endswith('/s') else 2}f}" for head in heads)
                    + ("  disturbed by other programs: not judged" if disturbed else ""),
                    flush=True,
                )
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
