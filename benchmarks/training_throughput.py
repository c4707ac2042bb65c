"""Our training beside a minimal bare torch loop, and what precision, layout and compiling do to a step.

    python benchmarks/training_throughput.py [--model cifar-resnet20] [--batch 128] [--precision fp32]
    python benchmarks/training_throughput.py --settings [--model resnet50] [--batch 8] [--compile]

The first form trains with `resnet_onnx.training.loop.train` and lets the bare loop do a step of its own after each of
ours, so that a neighbour or a drift hits both alike: the same network, batch, precision, layout, augmentation (a random
crop of the padded picture and a flip, each picture its own) and optimizer, and nothing else. Printed are the median
over the pairs of the ratio of images per second (ours / bare) with its 95 % interval, and the share of our steps' time
that went into getting a batch: waiting for pictures, changing and normalising them. Checkpoints and validation, which
the bare loop has none of, are outside the steps. Exit code 1 where the ratio is below `--at-least`, or the share above
`--at-most`, on a quiet machine. `--cpu-time` takes the CPU time of one thread instead, which depends little on what
else the machine does.

The second form takes single steps of one batch in every combination of precision and layout, in turns, and prints
images per second.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import torch.nn.functional as F

from resnet_onnx.bench.statistics import Interval, median_interval
from resnet_onnx.data.datasets import from_arrays
from resnet_onnx.models.build import build
from resnet_onnx.models.catalog import CatalogEntry, lookup
from resnet_onnx.models.configs import with_classes
from resnet_onnx.training.device import supports_bf16
from resnet_onnx.training.distributed import SINGLE_PROCESS
from resnet_onnx.training.loop import train
from resnet_onnx.training.plan import Progress, TrainingPlan
from resnet_onnx.training.recipes import Recipe, lookup_recipe
from resnet_onnx.training.splits import TrainingData
from resnet_onnx.training.step import TrainState

_CLASSES = 10
_QUIET = 0.1
"""Share of the cores that others may use before a figure says more of them than of us."""


def bare_steps(entry: CatalogEntry, recipe: Recipe, pictures: torch.Tensor, labels: torch.Tensor) -> Iterator[None]:
    """A training loop with nothing in it but the training; one step at each ``next``."""
    mean = 255 * torch.tensor(entry.preprocessing.mean).view(1, 3, 1, 1)
    std = 255 * torch.tensor(entry.preprocessing.std).view(1, 3, 1, 1)
    size, pad, batch = entry.image_size, recipe.pad, recipe.batch_size
    # A tensor made of a NumPy array remembers that its channels were last, and so would all that follows from it.
    padded = F.pad(pictures.contiguous(), (pad, pad, pad, pad))
    layout = torch.channels_last if recipe.layout == "channels-last" else torch.contiguous_format
    model = build(with_classes(entry.config, _CLASSES)).train().to(memory_format=layout)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=0.01,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.nesterov,
    )
    dtype = torch.bfloat16 if recipe.precision == "bf16" else None
    every = torch.arange(batch)
    while True:
        for index in torch.randperm(len(pictures)).split(batch):
            if len(index) < batch:
                continue
            windows = padded[index].unfold(2, size, 1).unfold(3, size, 1)
            top, left = torch.randint(0, 2 * pad + 1, (2, batch))
            x = windows[every, :, top, left]
            x = torch.where((torch.rand(batch) < 0.5).view(-1, 1, 1, 1), x.flip(3), x)
            x = ((x.float() - mean) / std).contiguous(memory_format=layout)
            with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
                logits = model(x)
            loss = F.cross_entropy(logits.float(), labels[index])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            yield


def _default_precision() -> str:
    return "bf16" if supports_bf16(torch.device("cpu")) else "fp32"


def beside_bare(args: argparse.Namespace) -> bool:
    """Measures both; returns whether what was asked for is missed."""
    entry = lookup(args.model)
    recipe = lookup_recipe("cifar-fast").override(
        epochs=1,
        batch_size=args.batch,
        precision=args.precision,
        layout=args.layout,
        learning_rate=0.01,
        validation=0.0,
    )
    rng = np.random.default_rng(0)
    count, size = args.batch * args.steps, entry.image_size
    pictures = rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    labels = np.arange(count) % _CLASSES
    data = TrainingData(train=from_arrays("noise", pictures, labels, [str(i) for i in range(_CLASSES)]))
    bare = bare_steps(entry, recipe, torch.from_numpy(pictures).permute(0, 3, 1, 2), torch.from_numpy(labels))
    for _ in range(3):
        next(bare)
    ours: list[float] = []
    theirs: list[float] = []
    began: list[float] = []

    def beside(progress: Progress) -> None:
        now = args.clock()
        if not progress.step:
            return
        if began:
            ours.append(now - began.pop())
        start = args.clock()
        next(bare)
        theirs.append(args.clock() - start)
        began.append(args.clock())

    before, start = _busy(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        plan = TrainingPlan(entry=entry, data=data, recipe=recipe, out=Path(folder) / "run", device="cpu", workers=0)
        result = train(plan, progress=beside)
    others = max(0.0, _busy() - before) / ((time.perf_counter() - start) * (psutil.cpu_count() or 1))
    pairs = list(zip(ours, theirs[1:], strict=False))[5:]  # step n of ours, and the bare one right after it
    ratios = np.array([bare_s / our_s for our_s, bare_s in pairs])
    ratio = median_interval(ratios)
    input_share = result.epochs[0]["input_seconds"] / (sum(ours) + statistics.median(ours))
    rates = [args.batch / statistics.median(times) for times in zip(*pairs, strict=True)]
    print(f"{args.model}, batch {args.batch}, {args.precision}, {args.layout}, {torch.get_num_threads()} threads, "
          f"{len(pairs)} pairs of steps")  # fmt: skip
    print(f"ours {rates[0]:.0f} img/s, bare {rates[1]:.0f} img/s")
    print(f"ratio {ratio.median:.3f} {_interval(ratio)}")
    print(f"getting a batch (waiting, changing, normalising): {100 * input_share:.1f} % of our steps' time")
    if others > _QUIET and not args.cpu_time:
        print(f"disturbed by other programs ({100 * others:.0f} % of the cores): not judged")
        return False
    return bool(ratio.median < args.at_least or input_share > args.at_most)


def settings(args: argparse.Namespace) -> None:
    """Prints images per second of every combination of precision and layout."""
    entry = lookup(args.model)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(args.batch, 3, entry.image_size, entry.image_size, generator=generator)
    targets = torch.randint(0, _CLASSES, (args.batch,), generator=generator)
    steps: dict[tuple[str, str, str], Callable[[], Any]] = {}
    for precision in ("fp32", "bf16"):
        for layout in ("contiguous", "channels-last"):
            for compiled in ("off", "on") if args.compile else ("off",):
                recipe = lookup_recipe("cifar-fast").override(precision=precision, layout=layout, compile=compiled)
                network = build(with_classes(entry.config, _CLASSES))
                state = TrainState(network, recipe, torch.device("cpu"), SINGLE_PROCESS)
                state.wrap()
                state.train_mode()
                steps[precision, layout, compiled] = lambda state=state: state.step(inputs, targets, 0.01)  # type: ignore[misc]
    times: dict[tuple[str, str, str], list[float]] = {key: [] for key in steps}
    for key, step in steps.items():
        start = args.clock()
        step()
        step()
        print(f"warm-up of {' '.join(key)}: {args.clock() - start:.1f} s", file=sys.stderr, flush=True)
    before, start = _busy(), time.perf_counter()
    for _ in range(args.rounds):
        for key, step in steps.items():
            step()  # what another network left in the caches does not count
            begin = args.clock()
            step()
            times[key].append(args.clock() - begin)
    others = max(0.0, _busy() - before) / ((time.perf_counter() - start) * (psutil.cpu_count() or 1))
    print(f"{args.model}, batch {args.batch}, {torch.get_num_threads()} threads, median of {args.rounds} steps; "
          f"others used {100 * others:.0f} % of the cores")  # fmt: skip
    for key, values in times.items():
        speed = median_interval(args.batch / np.array(values))
        print(f"{key[0]:<5} {key[1]:<14} compile {key[2]:<4} {speed.median:>8.1f} img/s {_interval(speed)}")


def _interval(found: Interval) -> str:
    if found.low is None or found.high is None:
        return "(too few for an interval)"
    return f"(95 %: {found.low:.4g} to {found.high:.4g})"


def _busy() -> float:
    """CPU time of all other processes so far, seconds."""
    times, own = psutil.cpu_times(), psutil.Process().cpu_times()
    return times.user + times.nice + times.system - own.user - own.system


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="cifar-resnet20")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument(
        "--precision", choices=["fp32", "bf16"], help="what train takes here by default", default=_default_precision()
    )
    parser.add_argument("--layout", default="channels-last", choices=["contiguous", "channels-last"])
    parser.add_argument("--steps", type=int, default=90)
    parser.add_argument("--at-least", type=float, default=0.95)
    parser.add_argument("--at-most", type=float, default=0.03)
    parser.add_argument("--settings", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--cpu-time", action="store_true")
    args = parser.parse_args()
    args.clock = time.process_time if args.cpu_time else time.perf_counter
    if args.cpu_time:
        torch.set_num_threads(1)
    if args.settings:
        settings(args)
        return 0
    return int(beside_bare(args))


if __name__ == "__main__":
    sys.exit(main())
