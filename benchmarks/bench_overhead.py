"""What `bench` reports over what a minimal hand-written loop measures on the same session.

    python benchmarks/bench_overhead.py [--model resnet50] [--runtimes ort-cpu,openvino,torch] [--batch 1,8]

Both time the same opened session in the same process: `bench` through its own sampling and the runtimes' interface, the
other with nothing but the library's own call between two readings of the clock. They take turns run by run, each timed
run right after one of its own that does not count, so that a neighbour or a drift hits both alike. The ratio of images
per second (ours / hand-written) is printed as the median over the pairs, with its 95 % interval. Exit code 1 where a
ratio leaves `--within` (default 0.02) of 1.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from resnet_onnx import workflow
from resnet_onnx.bench.clock import sample, warm_up
from resnet_onnx.bench.statistics import median_interval
from runtimes import Prepared, RuntimeOptions, open_runtime


def hand_written(name: str, runtime: Any, feeds: dict[str, Any]) -> Callable[[], object]:
    """Returns the library's own call on the session that the runtime holds, with inputs and outputs in place."""
    if name == "ort-cpu":
        session = runtime._session
        binding = session.io_binding()
        for key, array in feeds.items():
            binding.bind_cpu_input(key, array)
        for output in session.get_outputs():
            binding.bind_output(output.name)
        return lambda: session.run_with_iobinding(binding)
    if name == "openvino":
        import openvino

        request = runtime._compiled.create_infer_request()
        for index, array in enumerate(feeds.values()):
            request.set_input_tensor(index, openvino.Tensor(array, shared_memory=True))
        return lambda: request.infer()
    if name == "torch":
        import torch

        module, inputs = runtime._module, [torch.from_numpy(array) for array in feeds.values()]

        def forward() -> object:
            with torch.inference_mode():
                return module(*inputs)

        return forward
    raise SystemExit(f"no hand-written loop for {name}")


def by_hand(call: Callable[[], object]) -> float:
    """Returns the time of one call, after one that does not count."""
    call()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def by_bench(prepared: Prepared) -> float:
    """Returns the time that `bench` measures for one run, after one that it discards."""
    return float(sample([prepared], seconds=0).times_ns[0]) / 1e9


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--runtimes", default="ort-cpu,openvino,torch")
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--pairs", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=20.0, help="a row at most; at least 20 pairs are made")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--within", type=float, default=0.02)
    args = parser.parse_args()
    model = workflow.resolve(workflow.Request(model=args.model))
    outside = False
    print(f"{'runtime':<10} {'batch':>5} {'hand img/s':>11} {'ours img/s':>11} {'ratio':>7}  95 % interval   pairs")
    for name in args.runtimes.split(","):
        with open_runtime(name, workflow.source(model, name), options=RuntimeOptions(threads=args.threads)) as runtime:
            for batch in map(int, args.batch.split(",")):
                feeds = dict(workflow.sample_feeds(model, batch))
                call = hand_written(name, runtime, feeds)
                with runtime.prepare(feeds) as prepared:
                    warm_up([prepared], limit_s=5)
                    ours, theirs = [], []
                    end = time.perf_counter() + args.seconds
                    while len(ours) < args.pairs and (len(ours) < 20 or time.perf_counter() < end):
                        if len(ours) % 2:
                            ours.append(by_bench(prepared))
                            theirs.append(by_hand(call))
                        else:
                            theirs.append(by_hand(call))
                            ours.append(by_bench(prepared))
                ratios = median_interval(np.array(theirs) / np.array(ours))
                outside |= abs(ratios.median - 1) > args.within
                print(
                    f"{name:<10} {batch:>5} {batch / statistics.median(theirs):>11.2f} "
                    f"{batch / statistics.median(ours):>11.2f} {ratios.median:>7.4f}  "
                    + (f"{ratios.low:.4f}–{ratios.high:.4f}" if ratios.low and ratios.high else "too few pairs")
                    + f"   {len(ours)}",
                    flush=True,
                )
    return 1 if outside else 0


if __name__ == "__main__":
    sys.exit(main())
