"""How fast one portable int8 file is, beside float32 and beside what each library's own tools reach.

    python benchmarks/precision_speed.py [--models resnet50,resnet18,resnet152] [--batch 8] [--rounds 11]

For each model, taking turns in one run: float32 and int8 on ONNX Runtime and OpenVINO as `bench --scenario throughput`
runs them; ONNX Runtime on what its own quantiser makes (QDQ, U8 activations, S8 weights per channel); OpenVINO's
benchmark_app (`-hint throughput`) on our portable file; and torch.compile in bf16 (inductor, frozen weights). Every
row has a process of its own, and each round has another order. Ratios of images per second are medians over the
rounds with 95 % intervals. Exit code 1 where a whole interval is below its target. Weights are random: only the speed
is of interest. Models stay in `--folder`, so that a second start need not convert again.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from bench_throughput import Turn, benchmark_app, ours, speaking

from converters import calibration, graph, int8
from resnet_onnx import workflow
from resnet_onnx.bench.statistics import median_interval
from runtimes import ModelSource, onnx_gate

TARGETS = (
    ("ort-cpu int8", "ort-cpu fp32", 2.8),
    ("ort-cpu int8", "ort-cpu, its own quantiser", 0.97),
    ("openvino int8", "openvino fp32", 3.8),
    ("openvino int8", "benchmark_app int8", 0.97),
    ("best int8", "torch.compile bf16", 2.0),
)
"""Ours, theirs, and the least ratio that was aimed at for ResNet-50."""

_CALIBRATION = 8
"""Sample pictures for both quantisers: ranges don't change the speed."""


def converted(model: workflow.Model, plain: Path, folder: Path) -> Path:
    """Returns the portable int8 file as ``convert`` makes it, without its gate, which deep random nets don't pass."""
    path = folder / f"{model.name}-int8.onnx"
    if not path.is_file():
        plan = int8.plan(int8.prepared(graph.load(onnx_gate.check_onnx(plain)), what=model.name))
        pictures = [workflow.sample_feeds(model, 2, seed=seed) for seed in range(_CALIBRATION // 2)]
        seen = calibration.observe(plan.model, plan.observed, pictures, folder=folder, what=model.name)
        graph.write(path, int8.quantise(plan, seen.ranges("mse")), {})
    return path


def quantised_by_ort(plain: Path, model: workflow.Model, folder: Path) -> Path:
    """Returns what ``quantize_static`` makes of a float32 file: QDQ, unsigned activations, fastest on a CPU."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    path = folder / f"{model.name}-ort-u8s8.onnx"
    if path.is_file():
        return path

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.feeds = iter([dict(workflow.sample_feeds(model, 1, seed=seed)) for seed in range(_CALIBRATION)])

        def get_next(self) -> Any:
            return next(self.feeds, None)

    prepared = folder / f"{model.name}-prepared.onnx"
    quant_pre_process(str(plain), str(prepared))
    quantize_static(
        str(prepared), str(path), Reader(), per_channel=True, activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )  # fmt: skip
    prepared.unlink()
    return path


def compiled(model: str, feed: str) -> None:
    """Serves turns over stdin: torch.compile in bf16, as fast as its documentation says for a CPU."""
    import torch
    import torch._inductor.config as inductor

    from resnet_onnx.models.weights import load_network

    inductor.freezing = True
    described = workflow.resolve(workflow.Request(model=model)).network
    if described is None:
        sys.exit(f"{model} is no network")
    network = load_network(described.config, described.weights).eval()
    network = network.to(torch.bfloat16).to(memory_format=torch.channels_last)
    pictures = torch.from_numpy(np.load(feed)).to(torch.bfloat16).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        run = torch.compile(network)
        for _ in range(3):
            run(pictures)
        print("ready", flush=True)
        for line in sys.stdin:
            count, start = 0, time.perf_counter()
            while time.perf_counter() - start < float(line):
                run(pictures)
                count += 1
            print(count * len(pictures) / (time.perf_counter() - start), flush=True)


def measure(name: str, batch: int, rounds: int, seconds: float, folder: Path) -> dict[str, list[float]]:
    """Returns images per second of every row, a value per round."""
    plain = workflow.resolve(workflow.Request(model=name))
    exported = workflow.onnx_path(plain)
    portable = converted(plain, exported, folder)
    whole = workflow.resolve(workflow.Request(model=str(portable)))
    theirs = quantised_by_ort(exported, plain, folder)
    feeds = dict(workflow.sample_feeds(plain, batch))
    (array,) = feeds.values()
    with ExitStack() as stack:
        feed = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "feed.npy"
        np.save(feed, array)
        shape = array.shape
        turns: dict[str, Turn] = {}
        for runtime in ("ort-cpu", "openvino"):
            turns[f"{runtime} fp32"] = ours(stack, runtime, workflow.source(plain, runtime), feeds, batch)
            turns[f"{runtime} int8"] = ours(stack, runtime, workflow.source(whole, runtime), feeds, batch)
        turns["ort-cpu, its own quantiser"] = ours(stack, "ort-cpu", ModelSource(path=theirs), feeds, batch)
        turns["benchmark_app int8"] = lambda wanted: benchmark_app(portable, shape, wanted, precision=None)
        command = [sys.executable, __file__, "--serve", name, str(feed)]
        turns["torch.compile bf16"] = speaking(stack, command)
        found: dict[str, list[float]] = {row: [] for row in turns}
        order = random.Random(0)
        for _ in range(rounds):
            for row in order.sample(list(turns), len(turns)):
                found[row].append(turns[row](seconds))
    return found


def main() -> int:
    if sys.argv[1:2] == ["--serve"]:
        compiled(sys.argv[2], sys.argv[3])
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="resnet50,resnet18,resnet152", help="a comma list")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a turn")
    parser.add_argument("--folder", type=Path, default=Path("runs/precision-speed"), help="keeps the converted models")
    args = parser.parse_args()
    if shutil.which(str(Path(sys.executable).with_name("benchmark_app"))) is None:
        sys.exit("benchmark_app comes with the openvino wheel, and is not beside this Python")
    args.folder.mkdir(parents=True, exist_ok=True)
    missed = False
    for name in args.models.split(","):
        found = measure(name, args.batch, args.rounds, args.seconds, args.folder)
        print(f"{name}, batch {args.batch}, {args.rounds} rounds of {args.seconds:g} s; images per second, medians:")
        for row, values in found.items():
            print(f"  {row:<28} {statistics.median(values):>9.1f}   ({min(values):.1f} to {max(values):.1f})")
        best = max(("ort-cpu int8", "openvino int8"), key=lambda row: statistics.median(found[row]))
        for mine, theirs, least in TARGETS:
            one = best if mine == "best int8" else mine
            ratio = median_interval(np.array(found[one]) / np.array(found[theirs]))
            interval = "too few rounds for an interval"
            below = ratio.median < least
            if ratio.low is not None and ratio.high is not None:
                interval, below = f"{ratio.low:.2f} to {ratio.high:.2f}", ratio.high < least
            missed |= below and name == "resnet50"
            verdict = "below" if below else "reaches"
            print(f"  {one} / {theirs}: {ratio.median:.2f}   95 %: {interval}   {verdict} {least:g}", flush=True)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
