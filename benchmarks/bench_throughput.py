"""What `bench --scenario throughput` reaches beside the best that is written by hand for the same library.

    python benchmarks/bench_throughput.py [--model resnet50] [--batch 1] [--rounds 11] [--seconds 2]

For OpenVINO that is its own benchmark_app (`-hint throughput`, the same precision and batch); for ONNX Runtime the best
of three hand-written loops, over one session, over one session of one thread, and over a session of one thread to each
caller. Every one has a process of its own; they take turns, in another order each round, so that a drift hits
all alike. The ratio of images per second (ours / theirs) is printed as the median over the rounds with its 95 %
interval. Exit code 1 where a ratio is shown to be below `--at-least` (default 0.97): where its whole interval is.
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from resnet_onnx import workflow
from resnet_onnx.bench.statistics import median_interval
from resnet_onnx.bench.worker_process import WorkerProcess
from runtimes import ModelSource, RuntimeOptions, Target
from runtimes.cores import usable_cores

HAND = {
    "one session, all threads": (1, usable_cores()),
    "one session, one thread": (1, 1),
    "a session a caller, one thread": (usable_cores(), 1),
}
"""Sessions and threads of each, for as many callers as there are cores."""

Turn = Callable[[float], float]
"""Measures for so many seconds; returns images per second."""


def hand_written(path: str, feed: str, sessions: int, threads: int) -> None:
    """Serves turns over stdin: the loops that a user of ONNX Runtime would write."""
    import onnxruntime

    array = np.load(feed)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    made = [onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]) for _ in range(sessions)]
    calls = []
    for index in range(usable_cores()):
        session = made[index % sessions]
        binding = session.io_binding()
        binding.bind_cpu_input(session.get_inputs()[0].name, array)
        binding.bind_output(session.get_outputs()[0].name)
        calls.append(lambda session=session, binding=binding: session.run_with_iobinding(binding))
        calls[-1]()
    print("ready", flush=True)
    for line in sys.stdin:
        rates, start = [0.0] * len(calls), time.perf_counter()
        end = start + float(line)

        def work(index: int, end: float = end, rates: list[float] = rates) -> None:
            # As ours: what each caller did over its own time, so that waiting for the last one does not count.
            count, begin = 0, time.perf_counter()
            while time.perf_counter() < end:
                calls[index]()
                count += 1
            rates[index] = count / (time.perf_counter() - begin)

        threads_of_callers = [threading.Thread(target=work, args=(index,)) for index in range(len(calls))]
        for thread in threads_of_callers:
            thread.start()
        for thread in threads_of_callers:
            thread.join()
        print(sum(rates) * len(array), flush=True)


def served(stack: ExitStack, path: Path, feed: Path, sessions: int, threads: int) -> Turn:
    return speaking(stack, [sys.executable, __file__, "--serve", str(path), str(feed), str(sessions), str(threads)])


def speaking(stack: ExitStack, command: list[str]) -> Turn:
    """Starts a process that says when it is ready and then answers seconds with images per second, a line each."""
    process = stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    stack.callback(process.kill)
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("a process was started without pipes")
    requests, answers = process.stdin, process.stdout
    if not answers.readline():
        sys.exit(f"{' '.join(command)} ended before it was ready")

    def turn(seconds: float) -> float:
        requests.write(f"{seconds}\n")
        requests.flush()
        return float(answers.readline())

    return turn


def ours(stack: ExitStack, name: str, source: ModelSource, feeds: dict[str, Any], batch: int) -> Turn:
    worker = stack.enter_context(WorkerProcess(name))
    target = Target(runtime=name, source=source, options=RuntimeOptions(streams=None))
    opened = worker.call("open", target=target)
    print(f"{name}: {opened.streams} streams, {opened.recorded['threads']} threads")
    worker.call("prepare", row=0, feeds=feeds, batch=batch, scope="device", limit_s=5.0)

    def turn(seconds: float) -> float:
        return float(worker.call("sample", row=0, seconds=seconds, discard=1).runs_per_s) * batch

    return turn


def benchmark_app(path: Path, shape: tuple[int, ...], seconds: float, *, precision: str | None = "f32") -> float:
    """Returns the images per second that OpenVINO's own tool measures; its process starts anew."""
    command = [
        str(Path(sys.executable).with_name("benchmark_app")), "-m", str(path), "-d", "CPU", "-hint", "throughput",
        *(["-infer_precision", precision] if precision else []), "-t", f"{max(1, round(seconds))}",
        "-shape", str(list(shape)).replace(" ", ""),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"Throughput:\s+([\d.]+) FPS", done.stdout)
    if found is None:
        sys.exit(f"benchmark_app failed:\n{done.stdout[-1500:]}{done.stderr[-500:]}")
    return float(found[1])


def main() -> int:
    if sys.argv[1:2] == ["--serve"]:
        hand_written(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--batch", default="1")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a turn")
    parser.add_argument("--at-least", type=float, default=0.97)
    args = parser.parse_args()
    if shutil.which(str(Path(sys.executable).with_name("benchmark_app"))) is None:
        sys.exit("benchmark_app comes with the openvino wheel, and is not beside this Python")
    model = workflow.resolve(workflow.Request(model=args.model))
    path = workflow.onnx_path(model)
    missed = False
    for batch in map(int, args.batch.split(",")):
        feeds = dict(workflow.sample_feeds(model, batch))
        (array,) = feeds.values()
        with ExitStack() as stack:
            feed = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "feed.npy"
            np.save(feed, array)
            turns: dict[str, Turn] = {
                "ort-cpu": ours(stack, "ort-cpu", workflow.source(model, "ort-cpu"), feeds, batch),
                "openvino": ours(stack, "openvino", workflow.source(model, "openvino"), feeds, batch),
                "benchmark_app": lambda seconds, shape=array.shape: benchmark_app(path, shape, seconds),
                **{name: served(stack, path, feed, *how) for name, how in HAND.items()},
            }
            found: dict[str, list[float]] = {name: [] for name in turns}
            order = random.Random(0)
            for _ in range(args.rounds):
                for name in order.sample(list(turns), len(turns)):
                    found[name].append(turns[name](args.seconds))
        print(f"{args.model}, batch {batch}, {args.rounds} rounds of {args.seconds:g} s; images per second, medians:")
        for name, values in found.items():
            print(f"  {name:<32} {statistics.median(values):>9.1f}   ({min(values):.1f} to {max(values):.1f})")
        best = max(HAND, key=lambda name: statistics.median(found[name]))
        for name, other in (("openvino", "benchmark_app"), ("ort-cpu", best)):
            ratio = median_interval(np.array(found[name]) / np.array(found[other]))
            known = ratio.low is not None and ratio.high is not None
            missed |= ratio.median < args.at_least if not known else ratio.high < args.at_least
            interval = f"{ratio.low:.3f} to {ratio.high:.3f}" if known else "too few rounds for an interval"
            print(f"  {name} / {other}: {ratio.median:.3f}   95 %: {interval}", flush=True)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
