"""The same comparison here and through Polygraphy: how long each takes, and what each catches.

pip install polygraphy
python benchmarks/parity_beside_polygraphy.py [--model resnet50] [--rounds 5]

Time: two configurations of ONNX Runtime (with and without graph optimisation) on the same 22 inputs, whole processes in
turns; our gold is already in the cache, as in every run after the first. Verdicts: mutants of a network against the
sound file, both tools with their defaults, and sound files on their own.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

OURS = """
import sys
import numpy as np
from pathlib import Path
from resnet_onnx.parity.compare import Comparison, Inputs, Reference, compare
from resnet_onnx.parity.running import Batches
from resnet_onnx.parity.summation import sums_of
from runtimes.spec import ModelSource, RuntimeOptions, Target

path = Path(sys.argv[1])
kept = np.load(sys.argv[2])
batches = [{"input": kept[f"b{i}"]} for i in range(len(kept.files))]
source = ModelSource(path=path)
sizes = [len(b["input"]) for b in batches]
plain = Target(runtime="ort-cpu", source=source, options=RuntimeOptions(optimize=False))
report = compare(Comparison(
    gold=Reference(target=Target(runtime="reference", source=source), description="float64"),
    baselines=[Reference(target=plain, description="ort-cpu plain")],
    targets=[Target(runtime="ort-cpu", source=source), plain],
    inputs=Inputs(names=[str(i) for i in range(sum(sizes))], batches=Batches(lambda: iter(batches), sizes)),
    sums=sums_of(path),
    gold_key="beside polygraphy",
))
assert report.passed, [o.reason for o in report.outcomes]
"""

THEIRS = """
import sys
import numpy as np
import onnxruntime as ort
from polygraphy.backend.onnxrt import OnnxrtRunner
from polygraphy.comparator import Comparator, SimpleCompareFunc
from polygraphy.logger import G_LOGGER

G_LOGGER.module_severity = G_LOGGER.ERROR
kept = np.load(sys.argv[2])
batches = [{"input": kept[f"b{i}"]} for i in range(len(kept.files))]

def session(optimise):
    options = ort.SessionOptions()
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])

runners = [OnnxrtRunner(lambda: session(True), name="optimised"), OnnxrtRunner(lambda: session(False), name="plain")]
results = Comparator.run(runners, data_loader=batches)
Comparator.compare_accuracy(results, compare_func=SimpleCompareFunc())
"""


def prepared(name: str, folder: Path) -> tuple[Path, Path]:
    """Exports a network and writes the 22 default inputs in odd batches."""
    from resnet_onnx import workflow
    from resnet_onnx.parity.adversarial import adversarial_pictures, odd_batches

    model = workflow.resolve(workflow.Request(model=name, seed=3))
    path = folder / f"{name}.onnx"
    workflow.export(model, path)
    assert model.preprocessing is not None
    from resnet_onnx.data.samples import sample_pictures

    pictures = np.concatenate(
        [sample_pictures(16, model.preprocessing), adversarial_pictures(model.preprocessing.image_size)[1]]
    )
    parts = np.split(pictures, np.cumsum(odd_batches(len(pictures)))[:-1])
    inputs = folder / f"{name}.npz"
    np.savez(inputs, **{f"b{i}": workflow.feeds_of(model, part)["input"] for i, part in enumerate(parts)})
    return path, inputs


def seconds(script: str, path: Path, inputs: Path) -> float:
    """Returns the wall time of a whole process."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", script, str(path), str(inputs)], check=True, capture_output=True)
    return time.perf_counter() - start


def timed(name: str, rounds: int, folder: Path) -> None:
    """Prints the ratio of the two tools' times."""
    path, inputs = prepared(name, folder)
    seconds(OURS, path, inputs)  # gold into the cache
    seconds(THEIRS, path, inputs)
    pairs = [(seconds(OURS, path, inputs), seconds(THEIRS, path, inputs)) for _ in range(rounds)]
    ratios = sorted(a / b for a, b in pairs)
    ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(
        f"{name}, 22 inputs, two configurations of ONNX Runtime: ours {ours:.1f} s, Polygraphy {theirs:.1f} s, "
        f"ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}, {rounds} pairs)",
        flush=True,
    )


# ---- what each catches -----------------------------------------------------------------------------------------------


def weight(node: str, change: Callable[[np.ndarray], None], slot: int = 1) -> Callable[[onnx.ModelProto], None]:
    """Returns a change of one node's weight or bias."""

    def apply(model: onnx.ModelProto) -> None:
        name = next(n for n in model.graph.node if n.name == node).input[slot]
        tensor = next(t for t in model.graph.initializer if t.name == name)
        values = numpy_helper.to_array(tensor).copy()
        change(values)
        tensor.CopyFrom(numpy_helper.from_array(values, name))

    return apply


def scale(values: np.ndarray, factor: float) -> None:
    values[3] *= factor


def add(values: np.ndarray, amount: float) -> None:
    values[0] += amount


def swap(values: np.ndarray) -> None:
    values[:] = values[:, ::-1].copy()


def drop_relu(model: onnx.ModelProto) -> None:
    gone = next(n for n in model.graph.node if n.name == "layer2.1.relu")
    for node in model.graph.node:
        node.input[:] = [gone.input[0] if i == gone.output[0] else i for i in node.input]
    model.graph.node.remove(gone)


def shift_padding(model: onnx.ModelProto) -> None:
    node = next(n for n in model.graph.node if n.name == "layer2.1.conv1")
    next(a for a in node.attribute if a.name == "pads").ints[:] = [0, 1, 2, 1]


FAULTS: dict[str, Callable[[onnx.ModelProto], None]] = {
    "one channel of one weight off by 1 %": weight("layer2.1.conv2", lambda v: scale(v, 1.01)),
    "one channel of one weight off by 0.1 %": weight("layer2.1.conv2", lambda v: scale(v, 1.001)),
    "one channel of one weight off by 0.01 %": weight("layer2.1.conv2", lambda v: scale(v, 1.0001)),
    "one bias off by 0.001": weight("layer2.1.conv1", lambda v: add(v, 1e-3), slot=2),
    "BGR for RGB": weight("conv1", swap),
    "a missing ReLU": drop_relu,
    "shifted padding": shift_padding,
}


def polygraphy_passes(sound: Path, other: Path) -> bool:
    """Polygraphy with its defaults: random input, absolute and relative tolerance 1e-5."""
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
    from polygraphy.comparator import Comparator, SimpleCompareFunc
    from polygraphy.logger import G_LOGGER

    G_LOGGER.module_severity = G_LOGGER.CRITICAL
    runners = [OnnxrtRunner(SessionFromOnnx(str(p)), name=str(i)) for i, p in enumerate((sound, other))]
    with contextlib.redirect_stdout(io.StringIO()):
        results = Comparator.run(runners)
        return bool(Comparator.compare_accuracy(results, compare_func=SimpleCompareFunc()))


def plain_copy(path: Path, folder: Path) -> Path:
    """The same network after ONNX Runtime's own optimisation, as a file: sound, but summed in another order."""
    import onnxruntime as ort

    target = folder / f"{path.stem}-optimised.onnx"
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 3
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return target


def with_softmax(path: Path, folder: Path, factor: float = 1.0) -> Path:
    """The network followed by a Softmax (of the scores times a factor), as many deployed classifiers are."""
    model = onnx.load(path)
    name = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["scores" if o == name else o for o in node.output]
    model.graph.initializer.append(numpy_helper.from_array(np.array(factor, np.float32), "factor"))
    model.graph.node.append(onnx.helper.make_node("Mul", ["scores", "factor"], ["scaled"], name="scale"))
    model.graph.node.append(onnx.helper.make_node("Softmax", ["scaled"], [name], name="softmax", axis=-1))
    del model.metadata_props[:]
    target = folder / f"{path.stem}-softmax.onnx"
    onnx.save(model, target)
    return target


def verdicts(folder: Path) -> None:
    """Prints a table of what each tool says of mutants and of sound networks."""
    from resnet_onnx import workflow

    def ours(sound: Path, other: Path) -> bool:
        model = workflow.resolve(workflow.Request(model=str(other)))
        return workflow.check_parity(model, workflow.ParityPlan(runtimes=["ort-cpu"], gold=str(sound), images=4)).passed

    def say(passed: bool, *, sound: bool) -> str:
        return ("passes" if passed else "**false alarm**") if sound else ("**missed**" if passed else "caught")

    print("\n| network | what is done to it | resnet-onnx | Polygraphy, its defaults |\n|---|---|---|---|")
    for name in ("cifar-resnet20", "resnet18", "resnet18 and softmax"):
        path, _ = prepared(name.split()[0], folder)
        if "softmax" in name:
            path = with_softmax(path, folder)
        for fault, change in FAULTS.items():
            model = onnx.load(path)
            change(model)
            mutant = folder / "mutant.onnx"
            onnx.save(model, mutant)
            cells = (say(tool(path, mutant), sound=False) for tool in (ours, polygraphy_passes))
            print(f"| {name} | {fault} | {' | '.join(cells)} |", flush=True)
    for name in ("cifar-resnet20", "cifar-resnet110", "resnet18", "resnet50", "vgg16", "plain34"):
        path, _ = prepared(name, folder)
        copy = plain_copy(path, folder)
        model = workflow.resolve(workflow.Request(model=str(path)))
        plan = workflow.ParityPlan(runtimes=["ort-cpu", "openvino"], images=4)
        mine = workflow.check_parity(model, plan).passed
        cells = (say(mine, sound=True), say(polygraphy_passes(path, copy), sound=True))
        print(f"| {name} | nothing | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--rounds", type=int, default=5)
    arguments: Any = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("RESNET_ONNX_CACHE", str(Path(folder) / "cache"))
        timed(arguments.model, arguments.rounds, Path(folder))
        verdicts(Path(folder))


if __name__ == "__main__":
    main()
