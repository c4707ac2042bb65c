"""torch.compile, just in time and as the runtime `torch-compile`, beside eager torch and the exported forms.

python benchmarks/torch_compile_beside_others.py resnet18 resnet50        (a quiet machine; about ten minutes a model)

Every contender is open in a process of its own, frozen while it waits. They run in turns, in a new random order each
round, so that what slows the machine slows all of them alike. What is printed is the median of the rounds' ratios to
eager torch in float32, with the interval that holds the true median with 95 % (order statistics), and the median rate.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

from scipy.stats import binom

from resnet_onnx import workflow
from resnet_onnx.bench.paired import OpenedSide, Side
from resnet_onnx.workflow.opening import source, target
from runtimes.spec import ModelSource, RuntimeOptions, Target, TorchProgram

FP32, BF16 = RuntimeOptions(streams=1), RuntimeOptions(streams=1, autocast="bf16")


def jit_program(*, eager: ModelSource) -> TorchProgram:
    """Builds what a user's program has: a module under ``torch.compile``, with frozen weights."""
    import torch

    program: TorchProgram = eager.call_factory()
    compiled: Any = torch.compile(program.module, options={"freezing": True, "compile_threads": 1})
    return TorchProgram(module=compiled, inputs=program.inputs, outputs=program.outputs)


def contenders(model: str, folder: Path, batch: int) -> dict[str, Side]:
    """Returns all sides by name; those whose precision is in the file are converted where the file is not there."""
    network = workflow.resolve(workflow.Request(model=model))
    found = {}

    def add(name: str, what: workflow.Model, runtime: str, options: RuntimeOptions = FP32) -> None:
        opened = target(what, runtime, device=None, options=options, batches=(batch,))
        found[name] = Side(target=opened, feeds=workflow.sample_feeds(what, batch), batch=batch)

    add("torch fp32", network, "torch")
    add("torch bf16", network, "torch", BF16)
    for name, options in (("torch.compile fp32", FP32), ("torch.compile bf16", BF16)):
        eager = source(network, "torch")
        jit = ModelSource(factory=f"{Path(__file__).stem}:jit_program", arguments={"eager": eager}, label=model)
        aimed = Target(runtime="torch", source=jit, options=options)
        found[name] = Side(target=aimed, feeds=workflow.sample_feeds(network, batch), batch=batch)
    add("torch-compile fp32", network, "torch-compile")
    add("torch-compile bf16", network, "torch-compile", BF16)
    add("ort-cpu fp32", network, "ort-cpu")
    add("openvino fp32", network, "openvino")
    for precision, runtimes in (("bf16", ("openvino",)), ("int8", ("ort-cpu", "openvino"))):
        path = folder / f"{model}-{precision}.onnx"
        ranges = ("--method", "mse", "--count", "64") if precision == "int8" else ()
        words = ["convert", model, "--to", precision, *ranges, "--output", str(path)]
        if not path.is_file() and subprocess.run([sys.executable, "-m", "resnet_onnx", *words], check=False).returncode:
            print(f"left out: {precision} (convert refused it)")
            continue
        for runtime in runtimes:
            add(f"{runtime} {precision}", workflow.resolve(workflow.Request(model=str(path))), runtime)
    return found


def interval(values: list[float]) -> tuple[float, float]:
    """Returns the 95 % interval of the median by order statistics."""
    ordered = sorted(values)
    low = int(binom.ppf(0.025, len(ordered), 0.5))
    return ordered[max(0, low - 1)], ordered[min(len(ordered) - 1, len(ordered) - low)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["resnet18"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--folder", type=Path, default=Path("results/torch-compile"), help="Of converted files.")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for model in arguments.models:
        sides = contenders(model, arguments.folder, arguments.batch)
        with contextlib.ExitStack() as stack:
            opened = {name: stack.enter_context(OpenedSide(side)) for name, side in sides.items()}
            for each in opened.values():
                each.prepare()
            for name, each in opened.items():
                if each.error is not None:
                    print(f"left out: {name} ({each.error.message})")
            names = [name for name, each in opened.items() if each.error is None]
            rounds = []
            for _ in range(arguments.rounds):
                order = random.sample(names, len(names))
                rounds.append({name: opened[name].turn().run_s for name in order})
        print(f"\n{model}, batch {arguments.batch}, {len(rounds)} rounds\n")
        print("| | images/s | over torch fp32 | 95 % |\n| :--- | ---: | ---: | ---: |")
        for name in names:
            ratios = [each["torch fp32"] / each[name] for each in rounds]
            low, high = interval(ratios)
            rate = 1 / median(each[name] for each in rounds)
            print(f"| {name} | {rate:.3g} | {median(ratios):.2f} | {low:.2f}–{high:.2f} |", flush=True)


if __name__ == "__main__":
    main()
